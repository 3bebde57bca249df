"""A rollout as flat tensors, cut into shuffled minibatches or consecutive chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import unwrap_vec_normalize

__all__ = ["FiniteCheckCallback", "Rollout", "rollout_from_buffer"]


class Rollout(NamedTuple):
    """What one rollout holds, one row per state, n rows in all."""

    observations: Any  # (n, ...), or a dict of such tensors
    actions: th.Tensor  # (n, d)
    old_values: th.Tensor  # (n,)
    old_log_prob: th.Tensor  # (n,)
    advantages: th.Tensor  # (n,)
    returns: th.Tensor  # (n,)


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
        flat(buffer.actions).float(),  # as SB3's minibatches: integers and float64 would not do for every policy
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


def n_rows(tensors: Any) -> int:
    """Return the number of rows of the first tensor in a nested structure of tuples and dicts."""
    while isinstance(tensors, (tuple, dict)):
        tensors = tensors[0] if isinstance(tensors, tuple) else next(iter(tensors.values()))
    return len(tensors)


def minibatches(tensors: Any, batch_size: int, device: th.device) -> Iterator[Any]:
    """Shuffle once and yield slices: one epoch over ``tensors``, whose last minibatch may be smaller."""
    return chunks(rows(tensors, th.randperm(n_rows(tensors)).to(device)), batch_size)


def chunks(tensors: Any, size: int) -> Iterator[Any]:
    """Yield consecutive slices of ``size`` rows, in order."""
    for start in range(0, n_rows(tensors), size):
        yield rows(tensors, slice(start, start + size))


class FiniteCheckCallback(BaseCallback):
    """Stop with a clear error at the first observation or reward that is not a finite number."""

    def _on_rollout_start(self) -> None:
        self._check("observation", self.model._last_obs, "on reset")

    def _on_step(self) -> bool:
        when = f"at step {self.locals['n_steps'] + 1} of the rollout"
        self._check("observation", self.locals["new_obs"], when)
        self._check("reward", self.locals["rewards"], when)
        if self.locals["dones"].any():
            self._check_bootstrap(when)
        return True

    def _check(self, what: str, values: Any, when: str) -> None:
        if _broken(values) is None:
            return
        normalizer = unwrap_vec_normalize(self.training_env)
        if normalizer is not None:
            # One bad number is in the running statistics, and so in every environment's numbers: look behind.
            original = normalizer.old_obs if what == "observation" else normalizer.old_reward
            values = values if _broken(original) is None else original
        index, row = _broken(values)  # type: ignore[misc]
        self._raise(index, f"{what} {when}", row)

    def _check_bootstrap(self, when: str) -> None:
        """Check the last observation of an episode where its value is part of the return."""
        for index, info in enumerate(self.locals["infos"]):
            if self.locals["dones"][index] and info.get("TimeLimit.truncated", False):
                last = info["terminal_observation"]
                parts = last.items() if isinstance(last, dict) else [("", last)]
                found = _broken({key: np.asarray(part)[None] for key, part in parts})
                if found is not None:
                    self._raise(index, f"last observation of an episode {when}", found[1])

    def _raise(self, index: int, what: str, row: np.ndarray) -> None:
        raise ValueError(
            f"Environment {index} returned a non-finite {what} (timestep {self.num_timesteps}): {row}. Check the "
            "environment's dynamics and reward, for example with stable_baselines3.common.vec_env.VecCheckNan."
        )


def _broken(values: Any) -> tuple[int, np.ndarray] | None:
    """Return the first environment with a non-finite number, and its numbers; ``None`` if there is none."""
    for array in values.values() if isinstance(values, dict) else [values]:
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            index = int((~np.isfinite(array)).reshape(len(array), -1).any(axis=1).argmax())
            return index, array[index]
    return None
