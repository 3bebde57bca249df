"""What SB3's ``VecNormalize`` does in a step, bit for bit, in a fraction of the calls.

For one environment the mean of a batch is its only row and the variance is 0; statistics of returns are single numbers,
which Python adds faster than NumPy. Every operation that remains is SB3's own, in SB3's order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

__all__ = ["can_normalize", "normalized_step", "update"]

_METHODS = {"step", "step_async", "step_wait", "normalize_obs", "normalize_reward", "_normalize_obs", "_update_reward"}


def can_normalize(env: VecEnv) -> TypeGuard[VecNormalize]:
    """Return whether ``normalized_step`` is the step of ``env``: of SB3's own class, and no dictionaries."""
    is_own = type(env) is VecNormalize and _METHODS.isdisjoint(vars(env))
    return is_own and not isinstance(env.observation_space, spaces.Dict)


def normalized_step(
    env: VecNormalize, step: Callable[[np.ndarray], VecEnvStepReturn], actions: np.ndarray
) -> VecEnvStepReturn:
    """Do what ``VecNormalize.step`` does.

    :param env: One that ``can_normalize``.
    :param step: Steps what is inside.
    :param actions: Of every environment.
    """
    original, rewards, dones, infos = step(actions)
    assert isinstance(original, np.ndarray)
    env.old_obs, env.old_reward = original, rewards

    if not env.norm_obs:
        observations = original.copy()
    else:
        rms: Any = env.obs_rms
        if env.training:
            update(rms, original)
        rows = original[0] if len(original) == 1 else original  # equal shapes are subtracted in half the time
        observations = _scaled(rows - rms.mean, rms, env.epsilon, env.clip_obs).reshape(original.shape)
    if env.training:
        env.returns = env.returns * env.gamma + rewards
        _update_scalar(env.ret_rms, env.returns)
    if env.norm_reward:
        rewards = _scaled(rewards, env.ret_rms, env.epsilon, env.clip_reward)
    else:
        rewards = rewards.astype(np.float32)

    if any(dones.tolist()):
        for index in dones.nonzero()[0]:
            if "terminal_observation" in infos[index]:
                infos[index]["terminal_observation"] = env.normalize_obs(infos[index]["terminal_observation"])
        env.returns[dones] = 0
    return observations, rewards, dones, infos


def _scaled(values: np.ndarray, rms: RunningMeanStd, epsilon: float, bound: float) -> np.ndarray:
    values = values / np.sqrt(rms.var + epsilon)
    return np.minimum(np.maximum(values, -bound), bound).astype(np.float32)  # np.clip, in a third of its time


def update(rms: RunningMeanStd, batch: np.ndarray) -> None:
    """Do what ``RunningMeanStd.update`` does.

    :param rms: Statistics of ``(*shape)``.
    :param batch: ``(n, *shape)``.
    """
    if type(rms) is not RunningMeanStd or batch.ndim < 2 or batch.dtype.char not in "fd":
        rms.update(batch)
        return
    n, count = len(batch), rms.count
    total = count + n
    if n > 1:
        mean = np.add.reduce(batch) / n
        deviation = batch - mean
        var = np.add.reduce(np.square(deviation, deviation)) / n
        delta = mean - rms.mean
        rms.mean = rms.mean + delta * n / total
        rms.var = (rms.var * count + var * n + np.square(delta) * count * n / total) / total
    else:
        row = batch[0]
        delta = row - rms.mean
        rms.mean = rms.mean + delta / total
        # row - row: the variance, which is 0, or NaN where the row is not finite.
        rms.var = (rms.var * count + (row - row) + np.square(delta) * count / total) / total
    rms.count = total


def _update_scalar(rms: RunningMeanStd, batch: np.ndarray) -> None:
    """``update`` for statistics of a single number, ``batch`` of shape ``(n,)``."""
    if type(rms) is not RunningMeanStd or batch.dtype != np.float64:
        rms.update(batch)
        return
    n, count = len(batch), float(rms.count)
    if n > 1:
        mean = float(np.add.reduce(batch)) / n
        deviation = batch - mean
        var = float(np.add.reduce(np.square(deviation, deviation))) / n
    else:
        mean = batch.item()
        var = mean - mean
    old_mean, total = float(rms.mean), count + n
    delta = mean - old_mean
    rms.mean = np.float64(old_mean + delta * n / total)  # type: ignore[assignment]
    rms.var = np.float64((float(rms.var) * count + var * n + delta * delta * count * n / total) / total)  # type: ignore[assignment]
    rms.count = total
