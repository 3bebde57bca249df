"""Whether a GPU trains faster than the CPU beside it: ``python benchmarks/devices.py``.

Three sizes of a problem: networks 64-64, networks 512-512 with minibatches of 2048, and images. On every device TRPL,
FixPO and LeanPPO train, compiled and eager, beside SB3's PPO with minibatches of the same size, in turns and after a
warm-up that includes compilation. A second table has the KL projection of diagonal and of full covariances.

    python benchmarks/devices.py --sizes wide --devices cuda cpu --rounds 5 --threads 8
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from projections import COV_BOUND, MEAN_BOUND, PROJECTIONS, Case, median
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from training import Contest, measure

from sb3_trl import TRPL, FixPO, LeanPPO


class Pictures(gym.Env):
    """Random images, 84 × 84 × 4, that cost nothing to make, and a reward for actions near zero."""

    observation_space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    action_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self) -> None:
        self.pictures = np.random.default_rng(0).integers(256, size=(32, 84, 84, 4), dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode of 256 steps."""
        super().reset(seed=seed)
        self.steps = 0
        return self.pictures[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Show the next image."""
        self.steps += 1
        return self.pictures[self.steps % 32], -float(np.square(action).sum()), False, self.steps == 256, {}


#: Policy, environment, number of environments, and what all algorithms are given.
SIZES: dict[str, tuple[str, Any, int, dict[str, Any]]] = {
    "small": ("MlpPolicy", "HalfCheetah-v5", 1, {"n_steps": 2048, "batch_size": 64, "n_epochs": 10}),
    "wide": (
        "MlpPolicy",
        "HalfCheetah-v5",
        16,
        {"n_steps": 512, "batch_size": 2048, "n_epochs": 10, "policy_kwargs": {"net_arch": [512, 512]}},
    ),
    "images": ("CnnPolicy", Pictures, 8, {"n_steps": 128, "batch_size": 256, "n_epochs": 4}),
}
ALGORITHMS = {"TRPL-KL": TRPL, "FixPO": FixPO, "LeanPPO": LeanPPO}


def make(cls: type[BaseAlgorithm], size: str, device: str, **kwargs: Any) -> BaseAlgorithm:
    """Return a new model."""
    policy, env, n_envs, options = SIZES[size]
    return cls(policy, make_vec_env(env, n_envs=n_envs), device=device, **options, **kwargs)


def contest(size: str, device: str) -> Contest:
    """Return what trains on one device."""
    contest: Contest = {f"{size}, {device}: SB3 PPO": partial(make, PPO, size, device)}
    for name, cls in ALGORITHMS.items():
        for way, compile in (("eager", False), ("compiled", True)):
            contest[f"{size}, {device}: {name}, {way}"] = partial(make, cls, size, device, compile=compile)
    return contest


def projection_time(kind: str, batch: int, device: str, budget: float) -> tuple[float, float]:
    """Return the milliseconds of a projection forward, and forward and backward."""
    on_cpu = Case("kl", kind, batch, 17, True, th.float32).gaussians()
    new, old = (g.with_scale(g.scale.detach().to(device), g.mean.detach().to(device)) for g in on_cpu)
    new = new.with_scale(new.scale.requires_grad_(), new.mean.requires_grad_())
    projection = PROJECTIONS["kl"](MEAN_BOUND, COV_BOUND)

    def forward() -> None:
        projection(new, old)
        wait(device)

    def both() -> None:
        projected = projection(new, old)
        th.autograd.backward([projected.mean.sum(), projected.scale.sum()])
        new.mean.grad = new.scale.grad = None
        wait(device)

    clock: Callable[[], float] = time.perf_counter
    return median(forward, budget, clock), median(both, budget, clock)


def wait(device: str) -> None:
    """Wait until a device has done what it was asked."""
    if device != "cpu":
        th.get_device_module(device).synchronize()


def name_of(device: str) -> str:
    """Return what a device is called."""
    return th.cuda.get_device_name(device) if th.device(device).type == "cuda" else device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", nargs="+", default=["cpu", *(["cuda"] if th.cuda.is_available() else [])])
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=SIZES, help="of networks and minibatches")
    parser.add_argument("--rounds", type=int, default=5, help="iterations of each contestant")
    parser.add_argument("--states", nargs="*", type=int, default=[512, 65536], help="in a projection")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds for each number of the second table")
    parser.add_argument("--threads", type=int, default=th.get_num_threads(), help="of the CPU")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    devices = ", ".join(map(name_of, args.devices))
    print(f"torch {th.__version__}, {platform.machine()}, {args.threads} threads; {devices}", flush=True)
    for size in args.sizes:
        for device in args.devices:
            measure(contest(size, device), args.rounds)
    if args.states:
        print("\n| KL projection | states | device | forward, ms | forward and backward, ms |\n|---|---|---|---|---|")
    for batch in args.states:
        for kind in ("diagonal", "full"):
            for device in args.devices:
                forward, both = projection_time(kind, batch, device, args.budget)
                print(f"| {kind} | {batch} | {device} | {forward:.3f} | {both:.3f} |", flush=True)


if __name__ == "__main__":
    main()
