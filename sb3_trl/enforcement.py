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
    shuffle: bool = True,
) -> tuple[int, bool]:
    """Pass over the data in chunks, take a step wherever one is not clean, until one whole pass is.

    :param data: A table whose ``part`` is the arguments of ``is_clean``.
    :param chunk_size: States in a chunk.
    :param is_clean: Whether a chunk needs no step; a ``FloatingPointError`` from it ends the passes.
    :param step: Takes one gradient step on a chunk, as ``EagerStep`` does.
    :param max_steps: Stop after so many steps, clean or not.
    :param shuffle: Whether every pass has chunks of its own.
    :return: The number of steps, and whether the last pass was clean.
    """
    steps = 0
    with suppress(FloatingPointError):
        while True:
            steps_before = steps
            ordered = data.shuffled() if shuffle else data
            for rows in ordered.split(chunk_size):
                if is_clean(*data.part(rows)):
                    continue
                if steps == max_steps:
                    return steps, False
                step(data, rows)
                steps += 1
            if steps == steps_before:
                return steps, True
    return steps, False


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
