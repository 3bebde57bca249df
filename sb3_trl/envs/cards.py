"""Card games of POPGym, seen as vectors: nothing but memory is asked for."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_trl.envs.extras import from_extra

__all__ = ["CardGame", "card_game"]

_envs = from_extra("popgym.envs")


class CardGame(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """A game of POPGym whose observations are zeros and ones.

    Its own observations are numbers of suits, or tuples of them, which Stable-Baselines3 does not take. What it hands
    out in ``info`` is copied: the game goes on counting in the original.

    :param env: A game of POPGym with discrete observations.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._cards = env.observation_space
        self.observation_space = spaces.Box(0.0, 1.0, spaces.flatten_space(self._cards).shape, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Shuffle and deal."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._vector(observation), deepcopy(info)

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Name a card, or a number of cards."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._vector(observation), float(reward), terminated, truncated, deepcopy(info)

    def _vector(self, observation: Any) -> NDArray[np.float32]:
        return np.asarray(spaces.flatten(self._cards, observation), np.float32)


def card_game(game: str, render_mode: str | None = None) -> CardGame:
    """Make a game of POPGym.

    :param game: Name of POPGym's class, such as ``"AutoencodeEasy"``.
    :param render_mode: None: there is nothing to look at.
    """
    if render_mode is not None:
        raise ValueError(f"render_mode={render_mode!r}: POPGym's card games draw no pictures, leave it at None.")
    return CardGame(getattr(_envs, game)())
