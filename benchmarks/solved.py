"""Train on tasks that count as solved above a known return, and evaluate each final model on fresh episodes.

    python benchmarks/solved.py --algo fixpo --out docs/results/fixpo_small_tasks.md

The settings, and the number of steps, are those that ``sb3-trl train`` uses. Finished runs are not run again.
"""

from __future__ import annotations

import argparse
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
from learning_curves import Run
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

import sb3_trl.zoo

#: Mean returns from which a task usually counts as solved.
THRESHOLDS = {
    "CartPole-v1": 475,
    "Acrobot-v1": -100,
    "LunarLander-v3": 200,
    "LunarLanderContinuous-v3": 200,
    "Pendulum-v1": -200,
}
_EVALUATION_SEED = 10_000


def evaluate(run: Run, n_episodes: int) -> np.ndarray:
    """Return the final model's returns over episodes that it never saw, acting without noise."""
    assert run.result is not None
    env = make_vec_env(run.env, seed=_EVALUATION_SEED + run.seed)
    statistics = run.result / run.env / "vecnormalize.pkl"
    if statistics.exists():
        env = VecNormalize.load(str(statistics), env)
        env.training = env.norm_reward = False
    model = ALGOS[run.algo].load(run.result / f"{run.env}.zip", device="cpu")
    returns, _ = evaluate_policy(model, env, n_episodes, return_episode_rewards=True)
    return np.asarray(returns)


def n_steps_trained(run: Run) -> int:
    """Return after how many environment steps the model was saved."""
    assert run.result is not None
    return ALGOS[run.algo].load(run.result / f"{run.env}.zip", device="cpu").num_timesteps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", default="fixpo")
    parser.add_argument("--conf-file", default=None, help="the algorithm's own by default")
    parser.add_argument("--envs", nargs="+", default=list(THRESHOLDS), choices=THRESHOLDS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--eval-episodes", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--logs", type=Path, default=Path("logs/solved"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, required=True, help="the table")
    args = parser.parse_args()

    sb3_trl.zoo.register()
    config = args.conf_file or f"{args.algo}.yml"
    runs = [
        Run(args.algo, args.algo, config, (), env, seed, args.logs / args.algo / env / f"seed{seed}")
        for env in args.envs
        for seed in range(args.seeds)
    ]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda run: run.train(timesteps=-1, eval_freq=-1, eval_episodes=1), runs))

    lines = [f"| task | solved from | steps | mean return of {args.eval_episodes} episodes, each seed | solved |"]
    lines += ["|---|---|---|---|---|"]
    for env in args.envs:
        means = [evaluate(run, args.eval_episodes).mean() for run in runs if run.env == env and run.is_finished]
        if not means:
            continue
        steps = n_steps_trained(next(run for run in runs if run.env == env and run.is_finished))
        solved = sum(mean >= THRESHOLDS[env] for mean in means)
        figures = ", ".join(f"{mean:.1f}" for mean in means)
        lines.append(f"| {env} | {THRESHOLDS[env]} | {steps} | {figures} | {solved} of {len(means)} |")
    packages = ("torch", "stable_baselines3", "gymnasium", "sb3_trl")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    text = "\n".join(lines) + f"\n\n{versions}; {machine}\n"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
