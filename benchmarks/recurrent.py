"""How fast recurrent policies train beside sb3-contrib's RecurrentPPO: ``python benchmarks/recurrent.py``.

Tasks whose velocities are hidden, so that the policy needs its memory. As in ``training.py``, iterations take turns in
one process, on one thread, and the table gives medians. All take as many steps per minibatch and as many epochs.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import sb3_contrib
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from training import Contest, measure

from sb3_trl import LeanRecurrentPPO, RecurrentFixPO, RecurrentTRPL


class Positions(gym.ObservationWrapper):
    """Shows some of the numbers of an observation.

    :param env: Its observations are vectors.
    :param shown: Which numbers.
    """

    def __init__(self, env: gym.Env, shown: Sequence[int]) -> None:
        super().__init__(env)
        self.shown = list(shown)
        space: Any = env.observation_space
        self.observation_space = spaces.Box(space.low[self.shown], space.high[self.shown], dtype=space.dtype)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Return what is shown."""
        return observation[self.shown]


def cartpole(cls: type[BaseAlgorithm], n_envs: int = 16, **kwargs: Any) -> BaseAlgorithm:
    """CartPole without velocities: 16 environments, 64 steps each, minibatches of 256, ten epochs, LSTMs of 64."""
    env = make_vec_env("CartPole-v1", n_envs, wrapper_class=Positions, wrapper_kwargs={"shown": (0, 2)})
    options: dict[str, Any] = {"n_steps": 64, "batch_size": 256, "n_epochs": 10, "device": "cpu"}
    return cls("MlpLstmPolicy", env, policy_kwargs={"lstm_hidden_size": 64}, **options, **kwargs)


def pendulum(cls: type[BaseAlgorithm], **kwargs: Any) -> BaseAlgorithm:
    """Pendulum without its velocity: 8 environments, 256 steps each, minibatches of 512, ten epochs, LSTMs of 64."""
    env = make_vec_env("Pendulum-v1", 8, wrapper_class=Positions, wrapper_kwargs={"shown": (0, 1)})
    options: dict[str, Any] = {"n_steps": 256, "batch_size": 512, "n_epochs": 10, "device": "cpu"}
    return cls("MlpLstmPolicy", env, policy_kwargs={"lstm_hidden_size": 64}, **options, **kwargs)


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
