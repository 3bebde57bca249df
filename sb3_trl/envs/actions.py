"""Actions as the policy draws them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

__all__ = ["UnboundedActions"]

#: Stable-Baselines3 wants finite bounds; nothing that a policy draws is as large as this.
_BOUND = 1e6


class UnboundedActions(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Lift the bounds of the action space, so that the actions reach ``env.step`` as the policy drew them.

    Stable-Baselines3 clips actions to the bounds of their space first. What an environment makes of a larger
    action is its own: MuJoCo's tasks limit the torque in the simulator, and charge the control cost for the
    action they were given. In a YAML file of the RL Zoo: ``env_wrapper: sb3_trl.envs.UnboundedActions``.

    :param env: An environment with a ``Box`` of actions.
    :raises ValueError: if its actions are no ``Box``.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        space = env.action_space
        if not isinstance(space, spaces.Box):
            raise ValueError(f"UnboundedActions lifts the bounds of a Box of actions, not of {space}.")
        self.action_space = spaces.Box(-_BOUND, _BOUND, space.shape, np.dtype(space.dtype).type)
