"""A rollout as flat tensors, shuffled and cut into parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

__all__ = [
    "FiniteCheckCallback",
    "Rollout",
    "Shared",
    "Table",
    "chunks",
    "joined",
    "reward_scale",
    "rollout_from_buffer",
    "table",
]


class Rollout(NamedTuple):
    """What one rollout holds, one row per state, n rows in all."""

    observations: Any  # (n, ...), or a dict of such tensors
    actions: th.Tensor  # (n, d)
    old_values: th.Tensor  # (n,)
    old_log_prob: th.Tensor  # (n,)
    advantages: th.Tensor  # (n,)
    returns: th.Tensor  # (n,)


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
        return tensor.float() if tensor.dtype == th.float64 else tensor  # what SB3's policies do with every minibatch

    if isinstance(buffer, DictRolloutBuffer):
        observations: Any = {key: flat_observations(array) for key, array in buffer.observations.items()}
    else:
        observations = flat_observations(buffer.observations)
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


@dataclass(frozen=True)
class Table:
    """Data of n states taken apart: tensors with a row per state, tensors that all states share, and the way back.

    :param rows: Tensors of n rows.
    :param shared: Tensors that belong to all states.
    :param build: Maps rows and shared tensors, of any number of states, to the data.
    :param kind: Equal for tables that differ in tensors alone: one's ``build`` does for the other's tensors.
    """

    rows: Sequence[th.Tensor]
    shared: Sequence[th.Tensor]
    build: Callable[[Sequence[th.Tensor], Sequence[th.Tensor]], Any]
    kind: Hashable

    @property
    def n_rows(self) -> int:
        """n."""
        return len(self.rows[0])

    def random_order(self) -> th.Tensor:
        """Return the numbers of the rows in a random order, drawn on the CPU; shape ``(n,)``."""
        return th.randperm(self.n_rows).to(self.rows[0].device)

    def at(self, index: th.Tensor) -> Table:
        """Return the table of some of the rows."""
        return Table([tensor[index] for tensor in self.rows], self.shared, self.build, self.kind)

    def shuffled(self) -> Table:
        """Return the table with its rows in a random order."""
        return self.at(self.random_order())

    def split(self, size: int) -> Iterator[tuple[th.Tensor, ...]]:
        """Yield consecutive parts of ``size`` rows, the last of which may be smaller."""
        return zip(*(tensor.split(size) for tensor in self.rows), strict=True)

    def part(self, rows: Sequence[th.Tensor]) -> Any:
        """Return the data of some of the states."""
        return self.build(rows, self.shared)


@singledispatch
def table(data: Any) -> Table:
    """Take data of n states apart: nested tuples and dicts of tensors, ``None``, and registered classes."""
    raise TypeError(f"A {type(data).__name__} has no rows.")


@table.register
def _(data: Table) -> Table:
    return data


@table.register
def _(data: None) -> Table:
    return Table((), (), lambda rows, shared: None, None)


@table.register
def _(data: th.Tensor) -> Table:
    return Table((data,), (), lambda rows, shared: rows[0], th.Tensor)


@table.register
def _(data: tuple) -> Table:
    return joined([table(part) for part in data], type(data)._make if hasattr(data, "_make") else tuple, type(data))


@table.register
def _(data: dict) -> Table:
    keys = tuple(data)
    return joined([table(part) for part in data.values()], lambda parts: dict(zip(keys, parts, strict=True)), keys)


class Shared(NamedTuple):
    """A tensor that belongs to all states; what has the table hands it on as it is."""

    tensor: th.Tensor


@table.register
def _(data: Shared) -> Table:
    return Table((), (data.tensor,), lambda rows, shared: shared[0], Shared)


def joined(parts: Sequence[Table], assemble: Callable[[list[Any]], Any], kind: Hashable) -> Table:
    """Return the table of what ``assemble`` makes of the data of several tables with as many rows.

    :param parts: The tables.
    :param assemble: Maps the data of all of them to what is returned.
    :param kind: Equal for every ``assemble`` that does the same.
    """
    row_cuts = [0, *accumulate(len(part.rows) for part in parts)]
    shared_cuts = [0, *accumulate(len(part.shared) for part in parts)]
    slices = [
        (part.build, slice(*rows), slice(*shared))
        for part, rows, shared in zip(parts, pairwise(row_cuts), pairwise(shared_cuts), strict=True)
    ]

    def build(rows: Sequence[th.Tensor], shared: Sequence[th.Tensor]) -> Any:
        return assemble([build_part(rows[own], shared[common]) for build_part, own, common in slices])

    rows, shared = [x for part in parts for x in part.rows], [x for part in parts for x in part.shared]
    return Table(rows, shared, build, (kind, *(part.kind for part in parts)))


def chunks(data: Any, size: int) -> Iterator[Any]:
    """Yield consecutive parts of ``size`` states, in order."""
    whole = table(data)
    return (whole.part(rows) for rows in whole.split(size))


class FiniteCheckCallback(BaseCallback):
    """Stop with a clear error at the first observation or reward that is not a finite number."""

    def _on_rollout_start(self) -> None:
        self._check("observation", self.model._last_obs, "on reset")

    def _on_step(self) -> bool:
        locals_ = self.locals
        if not _is_finite(locals_["new_obs"]):
            self._check("observation", locals_["new_obs"], self._when)
        if not _is_finite(locals_["rewards"]):
            self._check("reward", locals_["rewards"], self._when)
        if any(locals_["dones"].tolist()):
            self._check_bootstrap(self._when)
        return True

    @property
    def _when(self) -> str:
        return f"at step {self.locals['n_steps'] + 1} of the rollout"

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


def _is_finite(values: Any) -> bool:
    if isinstance(values, dict):
        return all(map(_is_finite, values.values()))
    if values.dtype.kind != "f":
        return True
    # The sum is quicker than a look at each, and not finite if one of them is not. Python adds few numbers faster.
    total = sum(values.ravel().tolist()) if values.size < 32 else np.add.reduce(values, axis=None)
    return math.isfinite(total) or bool(np.isfinite(values).all())


def _broken(values: Any) -> tuple[int, np.ndarray] | None:
    """Return the first environment with a non-finite number, and its numbers; ``None`` if there is none."""
    for array in values.values() if isinstance(values, dict) else [values]:
        if not _is_finite(array):
            index = int((~np.isfinite(array)).reshape(len(array), -1).any(axis=1).argmax())
            return index, array[index]
    return None
