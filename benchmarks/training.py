"""How fast training is beside SB3's PPO that takes the same gradient steps: ``python benchmarks/training.py``.

Every contestant trains on HalfCheetah-v5 in this process, on one thread, after a warm-up that includes compilation;
iterations (rollout, update, log) take turns, so that all of them meet the machine in the same mood. The table gives
medians, and the ratio of each to PPO.

    python benchmarks/training.py --contests trpl --rounds 5
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import stable_baselines3
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env

from sb3_trl import TRPL, FixPO

Contest = dict[str, Callable[[], BaseAlgorithm]]


def paper(cls: type[BaseAlgorithm], **kwargs: Any) -> BaseAlgorithm:
    """2048 steps of one environment, minibatches of 32, networks 64-64."""
    return cls("MlpPolicy", make_vec_env("HalfCheetah-v5"), n_steps=2048, batch_size=32, device="cpu", **kwargs)


def authors(cls: type[BaseAlgorithm], **kwargs: Any) -> BaseAlgorithm:
    """8192 steps of eight environments, minibatches of 512, 10 epochs, networks 64-64."""
    env = make_vec_env("HalfCheetah-v5", n_envs=8)
    return cls("MlpPolicy", env, n_steps=1024, batch_size=512, n_epochs=10, device="cpu", **kwargs)


CONTESTS: dict[str, Contest] = {
    "trpl": {
        "SB3 PPO, 20 epochs": lambda: paper(PPO, n_epochs=20),
        "TRPL-KL, 20 + 10 epochs, compiled": lambda: paper(TRPL, compile=True),
        "TRPL-KL, 20 + 10 epochs, eager": lambda: paper(TRPL, compile=False),
        "TRPL-W2, 20 + 10 epochs, compiled": lambda: paper(TRPL, compile=True, projection="w2"),
        "TRPL-Frobenius, 20 + 10 epochs, compiled": lambda: paper(TRPL, compile=True, projection="frobenius"),
    },
    "fixpo": {
        "SB3 PPO": lambda: authors(PPO),
        "FixPO, compiled": lambda: authors(FixPO, compile=True),
        "FixPO, eager": lambda: authors(FixPO, compile=False),
    },
}


class Contestant:
    """A model that trains one iteration at a time, and how long each took.

    :param model: A new model.
    """

    def __init__(self, model: BaseAlgorithm) -> None:
        self.model = model
        self.steps = model.n_steps * model.n_envs  # type: ignore[attr-defined]
        self.rollouts: list[float] = []
        self.totals: list[float] = []
        model.learn(self.steps)
        collect = model.collect_rollouts  # type: ignore[attr-defined]

        def timed(*args: Any, **kwargs: Any) -> bool:
            start = time.perf_counter()
            result = collect(*args, **kwargs)
            self.rollouts.append(time.perf_counter() - start)
            return result

        model.collect_rollouts = timed  # type: ignore[attr-defined]

    def iterate(self) -> None:
        """Train one iteration."""
        start = time.perf_counter()
        self.model.learn(self.steps, reset_num_timesteps=False)
        self.totals.append(time.perf_counter() - start)


def measure(contest: Contest, rounds: int) -> None:
    """Print the table of one contest."""
    contestants = {name: Contestant(make()) for name, make in contest.items()}
    for _ in range(rounds):
        for contestant in contestants.values():
            contestant.iterate()
    steps = next(iter(contestants.values())).steps
    print(f"\n| {steps} steps | rollout, µs per step | update, ms | environment steps per second | of PPO's |")
    print("|---|---|---|---|---|")
    baseline = statistics.median(next(iter(contestants.values())).totals)
    for name, contestant in contestants.items():
        total, rollout = statistics.median(contestant.totals), statistics.median(contestant.rollouts)
        print(
            f"| {name} | {1e6 * rollout / steps:.0f} | {1e3 * (total - rollout):.0f} | {steps / total:.0f} "
            f"| {baseline / total:.2f} × |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contests", nargs="+", default=list(CONTESTS), choices=CONTESTS)
    parser.add_argument("--rounds", type=int, default=15, help="iterations of each contestant")
    args = parser.parse_args()
    th.set_num_threads(1)
    versions = f"torch {th.__version__}, stable_baselines3 {stable_baselines3.__version__}"
    print(f"{versions}; {platform.machine()}, Python {platform.python_version()}, one thread")
    for name in args.contests:
        measure(CONTESTS[name], args.rounds)


if __name__ == "__main__":
    main()
