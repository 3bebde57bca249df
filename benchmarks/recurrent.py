"""How fast recurrent policies train beside sb3-contrib's RecurrentPPO: ``python benchmarks/recurrent.py``.

Tasks whose velocities are hidden, so that the policy needs its memory. As in ``training.py``, iterations take turns in
one process, on one thread, and the table gives medians. All take as many steps per minibatch and as many epochs.
"""

from __future__ import annotations

import argparse
import platform
from typing import Any

import sb3_contrib
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from training import Contest, measure

import sb3_trl.envs  # noqa: F401  registers them
from sb3_trl import LeanRecurrentPPO, RecurrentFixPO, RecurrentTRPL


def cartpole(cls: type[BaseAlgorithm], n_envs: int = 16, **kwargs: Any) -> BaseAlgorithm:
    """CartPole without velocities: 16 environments, 64 steps each, minibatches of 256, ten epochs, LSTMs of 64."""
    env = make_vec_env("sb3_trl/CartPoleNoVel-v1", n_envs)
    options: dict[str, Any] = {"n_steps": 64, "batch_size": 256, "n_epochs": 10, "device": "cpu"}
    return cls("MlpLstmPolicy", env, policy_kwargs={"lstm_hidden_size": 64}, **options, **kwargs)


def pendulum(cls: type[BaseAlgorithm], **kwargs: Any) -> BaseAlgorithm:
    """Pendulum without its velocity: 8 environments, 256 steps each, minibatches of 512, ten epochs, LSTMs of 64."""
    env = make_vec_env("sb3_trl/PendulumNoVel-v1", 8)
    options: dict[str, Any] = {"n_steps": 256, "batch_size": 512, "n_epochs": 10, "device": "cpu"}
    return cls("MlpLstmPolicy", env, policy_kwargs={"lstm_hidden_size": 64}, **options, **kwargs)


class Screens(FakeImageEnv):
    """Pictures of noise, 36 × 64 × 3, in episodes of 100 to 300 steps: they cost next to nothing.

    Lengths are drawn, so that every rollout has ends in it: sb3-contrib pads a minibatch's sequences to the longest.
    """

    def __init__(self) -> None:
        super().__init__(screen_height=36, screen_width=64, n_channels=3, discrete=True)
        pictures = [self.observation_space.sample() for _ in range(20)]
        self.observation_space.sample = lambda: pictures[self.current_step % 20]

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        """Begin an episode, of another length."""
        self.ep_length = int(self.np_random.integers(100, 301))
        return super().reset(**kwargs)


def screens(cls: type[BaseAlgorithm], **kwargs: Any) -> BaseAlgorithm:
    """Pictures of 36 × 64: 8 environments, 64 steps each, minibatches of 128, four epochs, a CNN, LSTMs of 128."""
    options: dict[str, Any] = {"n_steps": 64, "batch_size": 128, "n_epochs": 4, "device": "cpu"}
    policy_kwargs = {"lstm_hidden_size": 128, "features_extractor_class": SmallCNN, "share_features_extractor": True}
    return cls("CnnLstmPolicy", make_vec_env(Screens, 8), policy_kwargs=policy_kwargs, **options, **kwargs)


class SmallCNN(BaseFeaturesExtractor):
    """Three layers of convolutions with strides, and a linear one."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 128) -> None:
        super().__init__(observation_space, features_dim)
        sizes = [(observation_space.shape[0], 16, 5, 3), (16, 32, 3, 2), (32, 32, 3, 2)]
        layers = [layer for size in sizes for layer in (nn.Conv2d(*size), nn.ReLU())]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(features_dim), nn.ReLU())
        self.layers(th.zeros(1, *observation_space.shape))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Return the features, ``(n, features_dim)``."""
        return self.layers(observations)


CONTESTS: dict[str, Contest] = {
    "cartpole": {
        "sb3-contrib RecurrentPPO": lambda: cartpole(RecurrentPPO),
        "LeanRecurrentPPO": lambda: cartpole(LeanRecurrentPPO),
        "LeanRecurrentPPO, windows of 16": lambda: cartpole(LeanRecurrentPPO, sequence_length=16),
        "RecurrentFixPO, bound kept": lambda: cartpole(RecurrentFixPO, kl_bound=0.1),
        "RecurrentTRPL, 10 + 10 epochs": lambda: cartpole(RecurrentTRPL),
    },
    "pendulum": {
        "sb3-contrib RecurrentPPO": lambda: pendulum(RecurrentPPO),
        "LeanRecurrentPPO": lambda: pendulum(LeanRecurrentPPO),
        "RecurrentFixPO, bound kept": lambda: pendulum(RecurrentFixPO, kl_bound=0.1),
        "RecurrentTRPL, 10 + 10 epochs": lambda: pendulum(RecurrentTRPL),
        "RecurrentTRPL, 10 + 10 epochs, hard": lambda: pendulum(RecurrentTRPL, hard=True),
    },
    "screens": {
        "sb3-contrib RecurrentPPO": lambda: screens(RecurrentPPO),
        "LeanRecurrentPPO": lambda: screens(LeanRecurrentPPO),
        "RecurrentFixPO, bound kept": lambda: screens(RecurrentFixPO, kl_bound=0.1),
        "RecurrentTRPL": lambda: screens(RecurrentTRPL),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contests", nargs="+", default=list(CONTESTS), choices=CONTESTS)
    parser.add_argument("--rounds", type=int, default=15, help="iterations of each contestant")
    args = parser.parse_args()
    th.set_num_threads(1)
    versions = f"torch {th.__version__}, sb3_contrib {sb3_contrib.__version__}"
    print(f"{versions}; {platform.machine()}, Python {platform.python_version()}, one thread")
    for name in args.contests:
        measure(CONTESTS[name], args.rounds)


if __name__ == "__main__":
    main()
