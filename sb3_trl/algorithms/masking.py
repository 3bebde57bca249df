"""Impossible actions, as users of sb3-contrib's MaskablePPO know them: masks of environments, and in ``predict``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_trl.algorithms.collecting import LeanRollouts
from sb3_trl.policies.forward import DistributionAndValues
from sb3_trl.policies.masks import Masked, check_masks
from sb3_trl.table import table

__all__ = ["ActionMasking", "masked_actions"]


class ActionMasking(LeanRollouts):
    """Takes the masks of environments that have ``action_masks()``, and those that ``predict`` is given."""

    #: Whether to take masks; ``None`` for where all environments have them.
    use_masking: bool | None = None

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        use_masking: bool | None = None,
    ) -> Any:
        """Train; arguments as in SB3.

        :param use_masking: Whether to take the environments' ``action_masks()``; by default where all have it.
        """
        self.use_masking = use_masking
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer, as in SB3; with masks, for policies and buffers of SB3 and this package alone.

        :raises ValueError: if masks are asked for and the environments have none, or a policy or buffer of another
            kind cannot take them.
        """
        if self._takes_masks(env) and not self._can_collect():
            raise ValueError(
                f"Action masks need a policy and a buffer of SB3 or this package, not {type(self.policy).__name__} and "
                f"{type(self.rollout_buffer).__name__}: learn(use_masking=False) trains without masks."
            )
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    def action_masks(self, env: VecEnv, when: str) -> np.ndarray | None:
        """Return the masks of all environments now, ``(n_envs, m)``, ``None`` where none are taken.

        :param env: The environments.
        :param when: For errors.
        """
        if not self._takes_masks(env):
            return None
        return check_masks(get_action_masks(env), self.action_space, env.num_envs, when)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return actions, as in SB3.

        :param action_masks: Which actions are possible, ``(n, m)`` or ``(m,)``; all by default.
        """
        if action_masks is None:
            return super().predict(observation, state, episode_start, deterministic)

        def decide(observations: Any, masks: th.Tensor) -> tuple[Any, Any]:
            return DistributionAndValues(self.policy)(Masked(observations, masks))[0], state

        return masked_actions(self.policy, observation, action_masks, decide, deterministic)

    def _takes_masks(self, env: VecEnv) -> bool:
        if self.use_masking is False or isinstance(self.action_space, spaces.Box):
            return False
        has_masks = is_masking_supported(env)
        if self.use_masking and not has_masks:
            raise ValueError(
                "use_masking=True, but the environments have no action_masks(): define it, or wrap each in "
                "sb3_contrib.common.wrappers.ActionMasker."
            )
        return has_masks


@th.no_grad()
def masked_actions(
    policy: Any,
    observation: Any,
    action_masks: np.ndarray,
    decide: Callable[[Any, th.Tensor], tuple[Any, Any]],
    deterministic: bool,
) -> tuple[np.ndarray, Any]:
    """Return the actions of a policy with masks, as ``predict`` does, and what ``decide`` returns with them.

    :param policy: The policy.
    :param observation: One, or those of n environments.
    :param action_masks: ``(n, m)`` or ``(m,)``.
    :param decide: Maps observations and masks, tensors, to a distribution and whatever goes with it.
    :param deterministic: As in SB3.
    """
    policy.set_training_mode(False)
    tensor, is_vectorized = policy.obs_to_tensor(observation)
    space, n = policy.action_space, table(tensor).n_rows
    masks = th.as_tensor(check_masks(action_masks, space, n), device=policy.device)
    distribution, others = decide(tensor, masks)
    actions = distribution.get_actions(deterministic).cpu().numpy().reshape(n, *(space.shape or ()))
    return actions if is_vectorized else actions.squeeze(axis=0), others
