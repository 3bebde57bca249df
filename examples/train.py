"""Train TRPL on a MuJoCo task for a few minutes, evaluate it, save it, draw how it learned and film it.

    python examples/train.py
    python examples/train.py --env Walker2d-v5 --timesteps 1000000 --seed 1 --out runs/walker

The settings are those of HalfCheetah-v5 in hyperparams/trpl.yml; `sb3-trl train` knows those of other tasks.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trl import TRPL

N_ENVS = 8
SETTINGS = {
    "projection": "kl",
    "mean_bound": 0.03,  # largest KL divergence of an update at any state, the mean's part
    "cov_bound": 0.001,  # the covariance's part
    "trust_region_coef": 8.0,
    "learning_rate": 1e-4,
    "critic_learning_rate": 1e-3,
    "n_steps": 256,  # of each environment
    "batch_size": 64,
    "n_epochs": 10,
    "n_critic_epochs": 10,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "policy_kwargs": {"init_std": 0.37},
}


class PrintReturn(BaseCallback):
    """Print the mean return of the last 20 training episodes now and then."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self.printed = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        returns = [episode["r"] for episode in self.model.ep_info_buffer][-20:]
        if returns and self.num_timesteps >= self.printed + self.every:
            self.printed = self.num_timesteps
            print(f"{self.num_timesteps:>9} steps   return {np.mean(returns):8.1f}", flush=True)


def show(title: str, script: str, out: Path, *arguments: object) -> None:
    """Run another example, which draws; where it cannot, say so: what is trained is saved already.

    It runs in a process of its own: drivers that do not work can end a process.
    """
    command = [sys.executable, Path(__file__).parent / script, "--out", out, *arguments]
    try:
        result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False)
        ended, said = result.returncode == 0, result.stderr.strip().splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        ended, said = False, [str(error)]
    if ended:
        print(f"{title + ':':11} {out}")
    else:
        reason = said[-1] if said else "it ended without a word"
        print(f"{title + ':':11} none, examples/{Path(script).name} cannot do it on this machine: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--timesteps", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/train"))
    parser.add_argument("--film", type=int, default=500, metavar="STEPS", help="length of the film, 0 for none")
    args = parser.parse_args()

    th.set_num_threads(1)  # with networks this small, more threads are slower
    env = VecNormalize(make_vec_env(args.env, N_ENVS, seed=args.seed), gamma=SETTINGS["gamma"])
    model = TRPL(
        "MlpPolicy", env, seed=args.seed, device="cpu", tensorboard_log=str(args.out / "tensorboard"), **SETTINGS
    )
    print(f"Training TRPL on {args.env} for {args.timesteps} steps")
    model.learn(args.timesteps, callback=PrintReturn(args.timesteps // 20), progress_bar=True)

    model.save(args.out / "model.zip")
    env.save(str(args.out / "vecnormalize.pkl"))  # the policy is worth nothing without its observation statistics
    env.training, env.norm_reward = False, False
    mean, std = evaluate_policy(model, env, n_eval_episodes=10)
    tensorboard = os.path.relpath(Path(sys.executable).with_name("tensorboard"))
    print(
        f"Evaluation: return {mean:.1f} +- {std:.1f} over 10 episodes\n"
        f"Saved:      {args.out / 'model.zip'} and {args.out / 'vecnormalize.pkl'}\n"
        f"Look at it: {tensorboard} --logdir {args.out / 'tensorboard'}"
    )
    show("Curves", "curves.py", args.out / "curves.png", "--run", args.out)
    if args.film:
        film = args.out / "film.mp4"
        show("Film", "film.py", film, "--run", args.out, "--env", args.env, "--steps", args.film)


if __name__ == "__main__":
    main()
