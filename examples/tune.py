"""Search for the size of the trust region with Optuna.

    python examples/tune.py
    python examples/tune.py --trials 50 --storage sqlite:///search.db

With a storage the search goes on where it stopped, and several processes share it when they are started with the
same one. `sb3-trl train --algo trpl --env Pendulum-v1 -optimize` searches through everything.
"""

import argparse

import optuna
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trl import TRPL

ENV = "Pendulum-v1"


def objective(trial: optuna.Trial, timesteps: int) -> float:
    """Return the mean return after training with the trial's settings."""
    env = VecNormalize(make_vec_env(ENV, n_envs=4, seed=0), gamma=0.95)
    model = TRPL(
        "MlpPolicy",
        env,
        projection=trial.suggest_categorical("projection", ["kl", "w2", "frobenius"]),
        mean_bound=trial.suggest_float("mean_bound", 0.005, 0.5, log=True),
        cov_bound=trial.suggest_float("cov_bound", 1e-4, 0.05, log=True),
        learning_rate=trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True),
        critic_learning_rate=1e-3,
        n_steps=256,
        batch_size=64,
        gamma=0.95,
        seed=0,
        device="cpu",
    )
    try:
        model.learn(timesteps)
    except FloatingPointError as error:  # the settings let training diverge
        raise optuna.TrialPruned(str(error)) from error
    env.training, env.norm_reward = False, False
    return evaluate_policy(model, env, n_eval_episodes=10)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--timesteps", type=int, default=20_000)
    parser.add_argument("--storage", help="for example sqlite:///search.db")
    args = parser.parse_args()

    th.set_num_threads(1)
    sampler = optuna.samplers.TPESampler(seed=0)
    study = optuna.create_study(
        direction="maximize", sampler=sampler, storage=args.storage, study_name="trpl", load_if_exists=True
    )
    study.optimize(lambda trial: objective(trial, args.timesteps), n_trials=args.trials)
    print(f"{len(study.trials)} trials, the best is trial {study.best_trial.number}: return {study.best_value:.1f}")
    for name, value in study.best_params.items():
        print(f"  {name}={value!r}")


if __name__ == "__main__":
    main()
