"""How fast training is beside SB3's PPO that takes the same gradient steps: ``python benchmarks/training.py``.

Every contestant trains in this process, on HalfCheetah-v5 but for what is said below, on one thread, after a warm-up
that includes compilation; iterations (rollout, update, log) take turns, so that all of them meet the machine in the
same mood. The table gives medians, and the ratio of each to PPO.

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
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trl import TRPL, FixPO, LeanPPO, LeanTRPO, SeedBatch
from sb3_trl.algorithms.base import TrustRegionAlgorithm

Contest = dict[str, Callable[[], BaseAlgorithm | SeedBatch]]


def paper(cls: type[BaseAlgorithm], batch_size: int = 32, **kwargs: Any) -> BaseAlgorithm:
    """2048 steps of one environment, minibatches of 32, networks 64-64."""
    env = make_vec_env("HalfCheetah-v5")
    return cls("MlpPolicy", env, n_steps=2048, batch_size=batch_size, device="cpu", **kwargs)


#: What ``trpl_paper.yml`` has otherwise than the constructor.
TRPL_PAPER: dict[str, Any] = {
    "learning_rate": 5e-5,
    "critic_learning_rate": 4.5e-4,
    "batch_size": 32,
    "n_epochs": 20,
    "policy_kwargs": {"init_std": 1.0},
}


def trpl(**kwargs: Any) -> BaseAlgorithm:
    """TRPL with its paper's settings."""
    return paper(TRPL, **TRPL_PAPER, **kwargs)


def authors(cls: type[BaseAlgorithm], **kwargs: Any) -> BaseAlgorithm:
    """8192 steps of eight environments, minibatches of 512, 10 epochs, networks 64-64."""
    env = make_vec_env("HalfCheetah-v5", n_envs=8)
    return cls("MlpPolicy", env, n_steps=1024, batch_size=512, n_epochs=10, device="cpu", **kwargs)


def tuned(cls: type[BaseAlgorithm], **kwargs: Any) -> BaseAlgorithm:
    """The RL Zoo's sizes for PPO: 512 steps, minibatches of 64, 20 epochs, networks 256-256 with ReLU."""
    options = {"n_steps": 512, "n_epochs": 20, "policy_kwargs": {"net_arch": [256, 256], "activation_fn": th.nn.ReLU}}
    return cls("MlpPolicy", make_vec_env("HalfCheetah-v5"), device="cpu", **options, **kwargs)


#: The settings of ``ppo_paper.yml``, of which the learning rate's decay makes no difference to the time.
PPO_PAPER: dict[str, Any] = {"n_steps": 2048, "batch_size": 64, "clip_range_vf": 0.2, "device": "cpu"}


def normalized(seed: int = 0) -> VecNormalize:
    """Normalised observations and rewards."""
    return VecNormalize(make_vec_env("HalfCheetah-v5", seed=seed))


def trpo_of_the_zoo(cls: type[TRPO]) -> TRPO:
    """The settings of ``trpo_v5.yml`` for Ant."""
    env = make_vec_env("Ant-v5", n_envs=2, env_kwargs={"include_cfrc_ext_in_observation": False})
    options = {"n_steps": 1024, "cg_max_steps": 25, "n_critic_updates": 20, "target_kl": 0.04, "device": "cpu"}
    return cls("MlpPolicy", VecNormalize(env), **options)


def cartpole(cls: type[BaseAlgorithm], **kwargs: Any) -> BaseAlgorithm:
    """Discrete actions: CartPole-v1, 128 steps of eight environments, minibatches of 64, 10 epochs, networks 64-64."""
    env = make_vec_env("CartPole-v1", n_envs=8)
    return cls("MlpPolicy", env, n_steps=128, batch_size=64, n_epochs=10, device="cpu", **kwargs)


def seeds(n_seeds: int, cls: type[TrustRegionAlgorithm], batch_size: int, **kwargs: Any) -> SeedBatch:
    """As ``paper``, several seeds at once."""
    options = {"n_steps": 2048, "batch_size": batch_size, "device": "cpu", **kwargs}
    return SeedBatch(
        cls, "MlpPolicy", lambda seed: make_vec_env("HalfCheetah-v5", seed=seed), range(n_seeds), **options
    )


def trpl_seeds(n_seeds: int) -> SeedBatch:
    """As ``trpl``, several seeds at once."""
    return seeds(n_seeds, TRPL, **TRPL_PAPER)


CONTESTS: dict[str, Contest] = {
    "trpl": {
        "SB3 PPO, 20 epochs": lambda: paper(PPO, n_epochs=20),
        "TRPL-KL, 20 + 10 epochs, compiled": lambda: trpl(compile=True),
        "TRPL-KL, 20 + 10 epochs, eager": lambda: trpl(compile=False),
        "TRPL-W2, 20 + 10 epochs, compiled": lambda: trpl(compile=True, projection="w2"),
        "TRPL-Frobenius, 20 + 10 epochs, compiled": lambda: trpl(compile=True, projection="frobenius"),
    },
    "discrete": {
        "SB3 PPO, CartPole": lambda: cartpole(PPO),
        "TRPL-KL, CartPole, 10 + 10 epochs, compiled": lambda: cartpole(TRPL, kl_bound=0.03, compile=True),
        "TRPL-KL, CartPole, 10 + 10 epochs, eager": lambda: cartpole(TRPL, kl_bound=0.03, compile=False),
        "FixPO, CartPole, compiled": lambda: cartpole(FixPO, compile=True),
        "FixPO, CartPole, eager": lambda: cartpole(FixPO, compile=False),
    },
    "seeds": {
        "SB3 PPO, 20 epochs": lambda: paper(PPO, n_epochs=20),
        "TRPL-KL, 20 + 10 epochs, compiled": lambda: trpl(compile=True),
        "TRPL-KL, 20 + 10 epochs, 10 seeds at once": lambda: trpl_seeds(10),
    },
    "ppo": {
        "SB3 PPO, 10 epochs": lambda: paper(PPO, 64),
        "LeanPPO, 10 epochs, compiled": lambda: paper(LeanPPO, 64, compile=True),
        "LeanPPO, 10 epochs, eager": lambda: paper(LeanPPO, 64, compile=False),
        "LeanPPO, 10 epochs, 5 seeds at once": lambda: seeds(5, LeanPPO, 64),
        "LeanPPO, 10 epochs, 10 seeds at once": lambda: seeds(10, LeanPPO, 64),
    },
    "ppo_paper": {
        "SB3 PPO, ppo_paper.yml": lambda: PPO("MlpPolicy", normalized(), **PPO_PAPER),
        "LeanPPO, ppo_paper.yml, compiled": lambda: LeanPPO("MlpPolicy", normalized(), compile=True, **PPO_PAPER),
        "LeanPPO, ppo_paper.yml, 5 seeds at once": lambda: SeedBatch(
            LeanPPO, "MlpPolicy", normalized, range(5), **PPO_PAPER
        ),
        "LeanPPO, ppo_paper.yml, 10 seeds at once": lambda: SeedBatch(
            LeanPPO, "MlpPolicy", normalized, range(10), **PPO_PAPER
        ),
    },
    "tuned_ppo": {
        "SB3 PPO, tuned": lambda: tuned(PPO),
        "LeanPPO, tuned, compiled": lambda: tuned(LeanPPO, compile=True),
    },
    "trpo": {
        "sb3-contrib TRPO": lambda: trpo_of_the_zoo(TRPO),
        "LeanTRPO": lambda: trpo_of_the_zoo(LeanTRPO),
    },
    "fixpo": {
        "SB3 PPO": lambda: authors(PPO),
        "FixPO, compiled": lambda: authors(FixPO, compile=True),
        "FixPO, eager": lambda: authors(FixPO, compile=False),
    },
}


class Contestant:
    """A model, or a batch of seeds, that trains one iteration at a time, and how long each took.

    :param model: A new one.
    """

    def __init__(self, model: BaseAlgorithm | SeedBatch) -> None:
        self.model: Any = model
        models: list[Any] = model.models if isinstance(model, SeedBatch) else [model]
        self.iteration = models[0].n_steps * models[0].n_envs
        self.steps = len(models) * self.iteration
        self.rollouts: list[float] = []
        self.totals: list[float] = []
        for _ in range(2):  # compilation; and what is compiled again for seeds of a later update
            self.model.learn(self.iteration, reset_num_timesteps=False)
        name = "_collect" if isinstance(model, SeedBatch) else "collect_rollouts"
        collect = getattr(model, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = collect(*args, **kwargs)
            self.rollouts.append(time.perf_counter() - start)
            return result

        setattr(model, name, timed)

    def iterate(self) -> None:
        """Train one iteration."""
        start = time.perf_counter()
        self.model.learn(self.iteration, reset_num_timesteps=False)
        self.totals.append(time.perf_counter() - start)


def measure(contest: Contest, rounds: int) -> None:
    """Print the table of one contest."""
    contestants = {name: Contestant(make()) for name, make in contest.items()}
    for _ in range(rounds):
        for contestant in contestants.values():
            contestant.iterate()
    print("\n| | steps | rollout, µs per step | update, ms | environment steps per second | of PPO's |")
    print("|---|---|---|---|---|---|")
    rates = {name: c.steps / statistics.median(c.totals) for name, c in contestants.items()}
    baseline = next(iter(rates.values()))
    for name, c in contestants.items():
        total, rollout = statistics.median(c.totals), statistics.median(c.rollouts)
        print(
            f"| {name} | {c.steps} | {1e6 * rollout / c.steps:.0f} | {1e3 * (total - rollout):.0f} "
            f"| {rates[name]:.0f} | {rates[name] / baseline:.2f} × |",
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
