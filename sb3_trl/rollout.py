"""A rollout as flat tensors, cut into shuffled minibatches or consecutive chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

__all__ = ["FiniteCheckCallback", "Rollout", "rollout_from_buffer"]


class Rollout(NamedTuple):
    """What one rollout holds, one row per state, n rows in all."""

    observations: Any  # (n, ...), or a dict of such tensors
    actions: th.Tensor  # (n, d)
    old_values: th.Tensor  # (n,)
    old_log_prob: th.Tensor  # (n,)
    advantages: th.Tensor  # (n,)
    returns: th.Tensor  # (n,)

    def __len__(self) -> int:
        return len(self.advantages)


def rollout_from_buffer(buffer: RolloutBuffer) -> Rollout:
    """Return the buffer's contents as flat tensors on its device, without touching the buffer."""

    def flat(array: np.ndarray) -> th.Tensor:
        return buffer.to_torch(array if buffer.generator_ready else buffer.swap_and_flatten(array))

    if isinstance(buffer, DictRolloutBuffer):
        observations: Any = {key: flat(array) for key, array in buffer.observations.items()}
    else:
        observations = flat(buffer.observations)
    return Rollout(
        observations,
        flat(buffer.actions),
        flat(buffer.values).flatten(),
        flat(buffer.log_probs).flatten(),
        flat(buffer.advantages).flatten(),
        flat(buffer.returns).flatten(),
    )


def rows(tensors: Any, index: th.Tensor | slice) -> Any:
    """Index the first dimension of every tensor in a nested structure of tuples and dicts; ``None`` stays."""
    if tensors is None:
        return None
    if isinstance(tensors, dict):
        return {key: rows(tensor, index) for key, tensor in tensors.items()}
    if isinstance(tensors, tuple):
        parts = [rows(tensor, index) for tensor in tensors]
        return type(tensors)(*parts) if hasattr(tensors, "_fields") else tuple(parts)
    return tensors[index]


def minibatches(tensors: Any, n: int, batch_size: int, device: th.device) -> Iterator[Any]:
    """Shuffle once and yield slices: one epoch over ``tensors``, whose last minibatch may be smaller."""
    shuffled = rows(tensors, th.randperm(n).to(device))
    return chunks(shuffled, n, batch_size)


def chunks(tensors: Any, n: int, size: int) -> Iterator[Any]:
    """Yield consecutive slices of ``size`` rows, in order."""
    for start in range(0, n, size):
        yield rows(tensors, slice(start, start + size))


class FiniteCheckCallback(BaseCallback):
    """Stop with a clear error at the first observation or reward that is not a finite number."""

    def _on_rollout_start(self) -> None:
        self._check("observation", self.model._last_obs)  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        self._check("observation", self.locals["new_obs"])
        self._check("reward", self.locals["rewards"])
        return True

    def _check(self, what: str, values: Any) -> None:
        for array in values.values() if isinstance(values, dict) else [values]:
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                broken = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
                raise ValueError(
                    f"Environment {int(broken.argmax())} returned a non-finite {what} at step "
                    f"{self.locals.get('n_steps', 0) + 1} of the rollout (timestep {self.num_timesteps}): "
                    f"{array[broken][0]}. Check the environment's dynamics and reward, for example with "
                    "stable_baselines3.common.vec_env.VecCheckNan."
                )
