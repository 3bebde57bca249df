"""Data of n states taken apart into tensors, to be shuffled, cut into parts and put together again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch
from itertools import accumulate, pairwise
from math import ceil
from typing import Any, NamedTuple

import torch as th

__all__ = ["Shared", "Table", "chunks", "joined", "table"]


@dataclass(frozen=True)
class Table:
    """Data of n states taken apart: tensors with a row per state, tensors that all states share, and the way back.

    :param rows: Tensors of n rows.
    :param shared: Tensors that belong to all states.
    :param build: Maps rows and shared tensors, of any number of states, to the data.
    :param kind: Equal for tables that differ in tensors alone: one's ``build`` does for the other's tensors.
    :param states_per_row: How many states a row is, on average; more than one where rows are sequences of states.
    """

    rows: Sequence[th.Tensor]
    shared: Sequence[th.Tensor]
    build: Callable[[Sequence[th.Tensor], Sequence[th.Tensor]], Any]
    kind: Hashable
    states_per_row: float = 1.0

    @property
    def n_rows(self) -> int:
        """n."""
        return len(self.rows[0])

    def rows_for(self, n_states: int) -> int:
        """Return how many rows have at least so many states, on average."""
        return ceil(n_states / self.states_per_row - 1e-9)

    def random_order(self) -> th.Tensor:
        """Return the numbers of the rows in a random order, drawn on the CPU; shape ``(n,)``."""
        return th.randperm(self.n_rows).to(self.rows[0].device)

    def at(self, index: th.Tensor) -> Table:
        """Return the table of some of the rows."""
        return Table([tensor[index] for tensor in self.rows], self.shared, self.build, self.kind, self.states_per_row)

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
