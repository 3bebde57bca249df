"""A rollout as flat tensors, shuffled and cut into parts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trl.policies.masks import Masked

__all__ = [
    "Rollout",
    "reward_scale",
    "rollout_from_buffer",
]


class Rollout(NamedTuple):
    """What one rollout holds, one row per state, n rows in all."""

    observations: Any  # (n, ...), or a dict of such tensors
    actions: th.Tensor  # (n, d)
    old_values: th.Tensor  # (n,)
    old_log_prob: th.Tensor  # (n,)
    advantages: th.Tensor  # (n,)
    returns: th.Tensor  # (n,)
    tasks: th.Tensor | None = None  # (n,), the number of every state's task, where there are several


def rollout_from_buffer(buffer: RolloutBuffer) -> Rollout:
    """Return the buffer's contents as flat tensors on its device, without touching the buffer.

    :raises ValueError: if the buffer is not full.
    """
    if not buffer.full:
        raise ValueError(
            f"The rollout buffer holds {buffer.pos} of {buffer.buffer_size} steps: collect a whole rollout."
        )

    def flat(array: np.ndarray) -> th.Tensor:
        return buffer.to_torch(array if buffer.generator_ready else buffer.swap_and_flatten(array))

    def flat_observations(array: np.ndarray) -> th.Tensor:
        tensor = flat(array)
        if tensor.dtype == th.uint8 and tensor.dim() == 4 and tensor.device.type == "cpu":
            return tensor.to(memory_format=th.channels_last)  # the same images, as convolutions are quickest with them
        return tensor.float() if tensor.dtype == th.float64 else tensor  # what SB3's policies do with every minibatch

    masks = getattr(buffer, "action_masks", None)
    if isinstance(buffer, DictRolloutBuffer):
        observations: Any = {key: flat_observations(array) for key, array in buffer.observations.items()}
    else:
        observations = flat_observations(buffer.observations)
    if masks is not None:
        rows = masks if masks.ndim == 2 else buffer.swap_and_flatten(masks)
        observations = Masked(observations, buffer.to_torch(rows).bool())
    return Rollout(
        observations,
        flat(buffer.actions).float(),  # as SB3's minibatches: integers and float64 would not do for every policy
        flat(buffer.values).flatten(),
        flat(buffer.log_probs).flatten(),
        flat(buffer.advantages).flatten(),
        flat(buffer.returns).flatten(),
    )


def reward_scale(normalization: VecNormalize | None) -> float:
    """Return what rewards are divided by: the standard deviation of discounted returns, 1 where nothing does it."""
    if normalization is None or not normalization.norm_reward:
        return 1.0
    return float(np.sqrt(normalization.ret_rms.var + normalization.epsilon))
