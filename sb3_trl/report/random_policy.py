"""Returns of the policy that draws every action uniformly: the zero of normalised scores.

    python -m sb3_trl.report.random_policy HalfCheetah-v5 Hopper-v5 --episodes 100

prints the rows of the table that comes with the package, ``random_returns.csv``.
"""

from __future__ import annotations

import argparse
import csv
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np

__all__ = ["random_returns", "shipped_returns"]

TABLE = Path(__file__).parent / "random_returns.csv"
COLUMNS = ("task", "mean", "std", "episodes", "gymnasium", "mujoco")


def random_returns(task: str, episodes: int, seed: int = 0) -> np.ndarray:
    """Play some episodes with uniformly drawn actions and return their returns.

    Of an id that has many tasks every episode is the next task's.

    :param task: Id of an environment.
    :param episodes: Number of episodes.
    :param seed: Of the environment and of the actions.
    """
    from sb3_trl.envs import number_of_tasks  # importing it registers them

    env = gym.make(task)
    env.action_space.seed(seed)
    returns, has_many = [], number_of_tasks(task) > 1
    for episode in range(episodes):
        env.reset(seed=seed + episode if episode == 0 or has_many else None)
        total, done = 0.0, False
        while not done:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total += float(reward)
            done = terminated or truncated
        returns.append(total)
    env.close()
    return np.array(returns)


def shipped_returns() -> dict[str, float]:
    """Return the mean return of random play by task, from the table that comes with the package."""
    with TABLE.open() as file:
        return {row["task"]: float(row["mean"]) for row in csv.DictReader(file)}


def main() -> None:
    """Print the table's rows for the tasks given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(",".join(COLUMNS))
    for task in args.tasks:
        returns = random_returns(task, args.episodes, args.seed)
        moments = f"{returns.mean():.2f},{returns.std(ddof=1):.2f}"
        print(f"{task},{moments},{args.episodes},{version('gymnasium')},{version('mujoco')}", flush=True)


if __name__ == "__main__":
    main()
