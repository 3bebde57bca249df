"""Card games of POPGym, seen as vectors: nothing but memory is asked for."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import DtypeObservation, FlattenObservation

from sb3_trl.envs.extras import from_extra

__all__ = ["card_game"]

_envs = from_extra("popgym.envs")


def card_game(game: str, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Make a game of POPGym that shows cards as zeros and ones.

    Its own observations are numbers of suits, or tuples of them, which Stable-Baselines3 does not take.

    :param game: Name of POPGym's class, such as ``"AutoencodeEasy"``.
    :param render_mode: None: there is nothing to look at.
    """
    if render_mode is not None:
        raise ValueError(f"render_mode={render_mode!r}: POPGym's card games draw no pictures, leave it at None.")
    return DtypeObservation(FlattenObservation(getattr(_envs, game)()), np.float32)
