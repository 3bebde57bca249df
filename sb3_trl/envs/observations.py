"""What of an observation the agent is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

__all__ = ["HiddenEntries"]


class HiddenEntries(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """Leave entries out of the observation, the velocities for example: the rest has to be remembered.

    The observation gets shorter. (``MaskVelocityWrapper`` of the RL Zoo sets velocities to zero instead; to a network
    the two are the same.) In a YAML file of the RL Zoo::

        env_wrapper:
          - sb3_trl.envs.HiddenEntries:
              indices: [1, 3]

    :param env: An environment whose observations are vectors.
    :param indices: Positions of the entries, from 0.
    :raises ValueError: if its observations are no vectors, an entry is not there, or none or all are to be hidden.
    """

    def __init__(self, env: gym.Env[Any, Any], indices: Sequence[int]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, indices=indices)
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"HiddenEntries shortens observations that are vectors, not those of {space}.")
        (length,) = space.shape
        hidden = set(indices)
        if not hidden or not hidden < set(range(length)):
            raise ValueError(
                f"indices={list(indices)}: choose some, not all, of the entries 0 to {length - 1} of the observation."
            )
        self._shown = np.array([index for index in range(length) if index not in hidden])
        low, high = space.low[self._shown], space.high[self._shown]
        self.observation_space = spaces.Box(low, high, dtype=np.dtype(space.dtype).type)

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        """Return the entries that are shown."""
        return observation[self._shown]
