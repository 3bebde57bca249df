"""Evaluations of untrained policies, as ``EvalCallback`` plays them, turn by turn on one core.

python benchmarks/evaluation.py [--tasks …] [--rounds 9]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_trl.envs  # noqa: F401  which registers tasks
from sb3_trl import TRPL, FixPO

METHODS = {"SB3 PPO": PPO, "FixPO": FixPO, "TRPL": TRPL}
STEPS = 500


def main() -> None:
    """Print a row for each task and method: medians over rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=["HalfCheetah-v5", "CartPole-v1"])
    parser.add_argument("--rounds", type=int, default=9, help=f"of {STEPS} steps each")
    arguments = parser.parse_args()
    th.set_num_threads(1)
    print("| task | method | µs for a step of an evaluation | of PPO's speed |\n|---|---|---|---|")
    for task in arguments.tasks:
        env = make_vec_env(task, 1, seed=0, env_kwargs={"max_episode_steps": STEPS})
        models = {name: cls("MlpPolicy", env, device="cpu", seed=0) for name, cls in METHODS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(arguments.rounds):
            for name, model in models.items():
                seconds[name].append(_seconds_per_step(model, env))
        medians = {name: float(np.median(values)) for name, values in seconds.items()}
        for name, median in medians.items():
            print(f"| {task} | {name} | {1e6 * median:.0f} | {medians['SB3 PPO'] / median:.2f} × |", flush=True)


def _seconds_per_step(model, env) -> float:
    steps, start = 0, time.perf_counter()
    while steps < STEPS:
        _, lengths = evaluate_policy(model, env, n_eval_episodes=1, return_episode_rewards=True, warn=False)
        steps += sum(lengths)
    return (time.perf_counter() - start) / steps


if __name__ == "__main__":
    main()
