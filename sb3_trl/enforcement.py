"""Making a trust region hold at every state of a batch, in bounded time: step until clean, else roll back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch as th

from sb3_trl.penalty import halving_search
from sb3_trl.rollout import Table

__all__ = ["roll_back", "step_until_clean"]


def step_until_clean(
    data: Table,
    chunk_size: int,
    is_clean: Callable[..., bool],
    step: Callable[[Table, Sequence[th.Tensor]], Any],
    max_steps: int,
) -> int:
    """Pass over the data in fresh chunks, take a step wherever one is not clean, until one whole pass is.

    :param data: A table whose ``part`` is the arguments of ``is_clean``.
    :param chunk_size: States in a chunk.
    :param is_clean: Whether a chunk needs no step; a ``FloatingPointError`` from it ends the passes.
    :param step: Takes one gradient step on a chunk, as ``EagerStep`` does.
    :param max_steps: Stop after so many steps, clean or not.
    :return: The number of steps.
    """
    steps, clean = 0, False
    with suppress(FloatingPointError):
        while not clean:
            clean = True
            order = th.randperm(data.n_rows).to(data.rows[0].device)
            for rows in data.shuffled(order).split(chunk_size):
                if is_clean(*data.part(rows)):
                    continue
                if steps == max_steps:
                    return steps
                step(data, rows)
                steps, clean = steps + 1, False
    return steps


def roll_back(
    optimizer: th.optim.Optimizer,
    parameters: Sequence[th.Tensor],
    old: Sequence[th.Tensor],
    is_feasible: Callable[[], bool],
) -> bool:
    """Move the policy back towards the old one until it is feasible, if it is not (``halving_search``).

    The optimiser's moments belong to parameters that are gone then, and start from zero.

    :param optimizer: The optimiser of the parameters.
    :param parameters: The policy's parameters, changed in place.
    :param old: Their values before the update, at which the policy is feasible.
    :param is_feasible: Whether the policy is.
    :return: Whether it had to be moved.
    """
    if is_feasible():
        return False
    halving_search(parameters, old, is_feasible)
    optimizer.state.clear()
    return True
