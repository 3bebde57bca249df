"""Stepping SB3's environments in one process without copying deeply what cannot change."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_trl.rollouts.normalization import can_normalize, normalized_step

__all__ = ["stepping"]

#: What a step consists of; an object that has methods of its own for it is left alone.
_METHODS = {"step", "step_async", "step_wait"}
_IMMUTABLE = frozenset({float, int, bool, str, type(None), np.float32, np.float64, np.int32, np.int64, np.bool_})


def stepping(env: VecEnv) -> Callable[[np.ndarray], VecEnvStepReturn]:
    """Return a function that does what ``env.step`` does, in less time.

    A ``DummyVecEnv``, under any wrappers, copies every observation and info deeply, which takes longer than a simple
    environment's step. Arrays of numbers and infos of plain values need no more than a copy. A ``VecNormalize`` around
    everything else takes its statistics in few calls, without a trace in the wrapper, which callbacks may save.
    Subclasses are left alone. Between two steps the environment is as it was.

    :param env: A vectorised environment.
    """
    inner = env.unwrapped
    if type(inner) is not DummyVecEnv or not _METHODS.isdisjoint(vars(inner)):
        return partial(normalized_step, env, env.venv.step) if can_normalize(env) else env.step
    lean_step = partial(_step, inner)
    if env is inner:
        return lean_step
    if not can_normalize(env):
        return partial(_step_around, inner, env.step)
    if env.venv is inner:
        return partial(normalized_step, env, lean_step)
    return partial(_step_around, inner, partial(normalized_step, env, env.venv.step))


def _step_around(
    inner: DummyVecEnv, step: Callable[[np.ndarray], VecEnvStepReturn], actions: np.ndarray
) -> VecEnvStepReturn:
    """Take a step of wrappers, which ask the environment that they know: it has another method for so long."""
    inner.step_wait = partial(_step_wait, inner)  # type: ignore[method-assign]
    try:
        return step(actions)
    finally:
        del inner.step_wait


def _step(self: DummyVecEnv, actions: np.ndarray) -> VecEnvStepReturn:
    """Do what ``DummyVecEnv.step`` does."""
    self.actions = actions
    return _step_wait(self)


def _step_wait(self: DummyVecEnv) -> VecEnvStepReturn:
    """Do what ``DummyVecEnv.step_wait`` does."""
    infos = self.buf_infos
    array = self.buf_obs[None] if self.keys == [None] else None  # type: ignore[index]
    for index, env in enumerate(self.envs):
        obs, self.buf_rews[index], terminated, truncated, infos[index] = env.step(self.actions[index])
        done = self.buf_dones[index] = terminated or truncated
        infos[index]["TimeLimit.truncated"] = truncated and not terminated
        if done:
            infos[index]["terminal_observation"] = obs
            obs, self.reset_infos[index] = env.reset()
        if array is None:
            self._save_obs(index, obs)
        else:
            array[index] = obs
    observations = self._obs_from_buf() if array is None else array.copy()
    return observations, self.buf_rews.copy(), self.buf_dones.copy(), [_copied(info) for info in infos]


def _copied(info: dict[str, Any]) -> dict[str, Any]:
    return info.copy() if _IMMUTABLE.issuperset(map(type, info.values())) else deepcopy(info)
