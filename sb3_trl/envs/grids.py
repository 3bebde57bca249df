"""Rooms of MiniGrid, seen as vectors."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_trl.envs.extras import from_extra

__all__ = ["OneHotGrid", "door_key", "memory"]

_constants, _envs = from_extra("minigrid.core.constants"), from_extra("minigrid.envs")

#: Numbers of kinds of objects, of colours, and of states (of a door: open, closed, locked; of an agent: its direction).
_SIZES = (len(_constants.OBJECT_TO_IDX), len(_constants.COLOR_TO_IDX), len(_constants.DIR_TO_VEC))
_DIRECTIONS = len(_constants.DIR_TO_VEC)


class OneHotGrid(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """MiniGrid's observation as one vector of zeros and ones.

    MiniGrid numbers what is in a cell: (object, colour, state). The numbers say nothing about likeness (a door is no
    mean of the floor and a key), so that each becomes a one among zeros: 11 + 6 + 4 entries for each of the 7 × 7 cells
    that the agent sees, row after row, and four for the direction that it faces. The mission, a sentence, is left
    out: where it differs from one episode to the next the agent cannot know it.

    In a YAML file of the RL Zoo: ``env_wrapper: sb3_trl.envs.OneHotGrid``.

    :param env: An environment of MiniGrid.
    :raises ValueError: if its observations are not MiniGrid's.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        shape = _shape(env)
        if shape is None:
            raise ValueError(
                "OneHotGrid takes MiniGrid's own observations, 'image' and 'direction', not those of "
                f"{env.observation_space}: let it be the first of the wrappers."
            )
        width, height = shape
        cells = np.arange(width * height).reshape(width, height, 1)
        #: Where the entries begin that each number of the image is one of.
        self._first = cells * sum(_SIZES) + np.cumsum([0, *_SIZES[:-1]])
        self._n_image = width * height * sum(_SIZES)
        self.observation_space = spaces.Box(0.0, 1.0, (self._n_image + _DIRECTIONS,), np.float32)

    def observation(self, observation: dict[str, Any]) -> NDArray[np.float32]:
        """Return zeros, and ones for what is there."""
        vector = np.zeros(self._n_image + _DIRECTIONS, np.float32)
        vector[self._first + observation["image"]] = 1.0
        vector[self._n_image + observation["direction"]] = 1.0
        return vector


def _shape(env: gym.Env[Any, Any]) -> tuple[int, int] | None:
    """Width and height, in cells, of what is seen of a grid; None if it is none of cells."""
    space = env.observation_space
    if not isinstance(space, spaces.Dict) or not {"image", "direction"} <= set(space.spaces):
        return None
    view, width, height = (env.get_wrapper_attr(name) for name in ("agent_view_size", "width", "height"))
    shape = (space["image"].shape or ())[:2]
    return shape if shape in ((view, view), (width, height)) else None


def memory(**kwargs: Any) -> OneHotGrid:
    """Make MiniGrid's Memory: see an object, walk along a corridor, turn to where the same object is.

    :param kwargs: ``size``, ``random_length``, ``render_mode`` and other arguments of MiniGrid's ``MemoryEnv``.
    """
    return OneHotGrid(_envs.MemoryEnv(**kwargs))


def door_key(**kwargs: Any) -> OneHotGrid:
    """Make MiniGrid's DoorKey: find the key, open the door, walk to the goal behind it.

    :param kwargs: ``size``, ``render_mode`` and other arguments of MiniGrid's ``DoorKeyEnv``.
    """
    return OneHotGrid(_envs.DoorKeyEnv(**kwargs))
