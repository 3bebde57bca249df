"""Collecting rollouts as SB3 does, with less work per step, for every algorithm of the package."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_trl.monitoring.finite import FiniteCheckCallback
from sb3_trl.moved import old_modules
from sb3_trl.policies.prediction import likeliest_actions
from sb3_trl.rollouts.collection import can_collect, collect_rollout

__all__ = ["LeanRollouts", "first"]


class LeanRollouts(OnPolicyAlgorithm):
    """Collects the rollouts of SB3 with less work per step, for the policies of SB3 and of this package."""

    #: Name of the TensorBoard run.
    name: ClassVar[str]

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Any:
        """Train; arguments as in SB3. The TensorBoard run is named after the algorithm."""
        name, grad_mode = tb_log_name or self.name, th.is_grad_enabled()
        try:
            return super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)
        except BaseException:
            th.set_grad_enabled(grad_mode)  # Ctrl-C may come even where a block without gradients begins or ends
            raise

    @classmethod
    def load(
        cls,
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Load a model, as in SB3; also one that an earlier version saved."""
        with old_modules():
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return actions, as in SB3, deterministic ones of small networks in half the time or less."""
        actions = likeliest_actions(self.policy, observation) if deterministic else None
        if actions is None:
            return super().predict(observation, state, episode_start, deterministic)
        return actions, state

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer, as in SB3; for policies and buffers of another kind by SB3's own method."""
        if self._can_collect():
            return self._collect(self, env, callback, rollout_buffer, n_rollout_steps)
        return self._collect_as_sb3(env, callback, rollout_buffer, n_rollout_steps)

    def _collect_as_sb3(self, *arguments: Any) -> bool:
        return super().collect_rollouts(*arguments)

    #: Collects what SB3 would, where ``_can_collect``.
    _collect = staticmethod(collect_rollout)

    def _can_collect(self) -> bool:
        return can_collect(self)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise ValueError(f"Policy {policy_name} unknown to {type(self).__name__}: {self._advice_on_policies()}")
        return super()._get_policy_from_name(policy_name)

    def _advice_on_policies(self) -> str:
        """Say which policies there are, and what is for the others."""
        names = ", ".join(map(repr, self.policy_aliases))
        others = "recurrent policies are for RecurrentFixPO, RecurrentTRPL and LeanRecurrentPPO"
        return f"choose {names} or a class; {others}."

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        # First in the list: a broken environment is reported before any other callback looks at it.
        return super()._init_callback(first(FiniteCheckCallback(), callback), progress_bar)


def first(callback: BaseCallback, others: MaybeCallback) -> list[BaseCallback]:
    """Return a list of callbacks that begins with one."""
    if isinstance(others, list):
        return [callback, *others]
    if others is None or isinstance(others, BaseCallback):
        return [callback] if others is None else [callback, others]
    return [callback, ConvertCallback(others)]
