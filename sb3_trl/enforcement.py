"""Making a trust region hold at every state of a batch, in bounded time: step until clean, else roll back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch as th

from sb3_trl.penalty import halving_search

__all__ = ["roll_back", "step_until_clean"]


def step_until_clean(
    passes: Callable[[], Iterable[Any]], is_clean: Callable[..., bool], step: Callable[..., Any], max_steps: int
) -> int:
    """Pass over the data, take a step wherever a chunk is not clean, until one whole pass is.

    :param passes: Returns the chunks of one pass, each a tuple.
    :param is_clean: Whether a chunk needs no step; a ``FloatingPointError`` from it ends the passes.
    :param step: Takes one gradient step on a chunk.
    :param max_steps: Stop after so many steps, clean or not.
    :return: The number of steps.
    """
    steps, clean = 0, False
    with suppress(FloatingPointError):
        while not clean:
            clean = True
            for chunk in passes():
                if is_clean(*chunk):
                    continue
                if steps == max_steps:
                    return steps
                step(*chunk)
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
