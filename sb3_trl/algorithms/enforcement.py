"""Making a trust region hold at every state of a batch, in bounded time: step until clean, else roll back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch as th
from torch import nn

from sb3_trl.penalty import halving_search
from sb3_trl.policies.parameters import statistics
from sb3_trl.steps.evaluation import Evaluation
from sb3_trl.table import Table

__all__ = ["Checkpoint", "refined", "roll_back", "step_until_clean"]


def step_until_clean(
    data: Table,
    chunk_size: int,
    measure: Evaluation,
    is_clean: Callable[[th.Tensor], bool],
    step: Callable[[Table, Sequence[th.Tensor]], Any],
    max_steps: int,
    shuffle: bool = True,
) -> tuple[int, bool]:
    """Pass over the data in chunks, take a step wherever one is not clean, until one whole pass is.

    Nothing is measured twice between two steps: the last pass looks again only at what the last step may have changed
    since it was seen.

    :param data: The states, as a table.
    :param chunk_size: States in a chunk.
    :param measure: What is measured at up to ``chunk_size`` states.
    :param is_clean: Whether a chunk needs no step, by its measurements; a ``FloatingPointError`` ends the passes.
    :param step: Takes one gradient step on a chunk, as ``EagerStep`` does.
    :param max_steps: Stop after so many steps, clean or not.
    :param shuffle: Whether every pass has chunks of its own.
    :return: The number of steps, and whether the last pass was clean.
    """
    steps, seen = 0, _Measurements(measure, data.n_rows, chunk_size, data.rows[0].device)
    with suppress(FloatingPointError):
        while True:
            steps_before = steps
            order = data.random_order() if shuffle else th.arange(data.n_rows, device=data.rows[0].device)
            for start in range(0, data.n_rows, chunk_size):
                if is_clean(seen.first(order[start:])):
                    continue
                if steps == max_steps:
                    return steps, False
                step(data, data.at(order[start : start + chunk_size]).rows)
                seen.forget()
                steps += 1
            if steps == steps_before:
                return steps, True
    return steps, False


class _Measurements:
    """What was measured at which states since it could last have changed.

    :param measure: Measures up to ``size`` states.
    :param n: The number of states.
    :param size: How many are measured at once.
    :param device: Of the states.
    """

    def __init__(self, measure: Evaluation, n: int, size: int, device: th.device) -> None:
        self.measure = measure
        self.size = size
        self._is_known = th.zeros(n, dtype=th.bool, device=device)
        self._values = th.zeros(n, dtype=th.float64, device=device)

    def first(self, rows: th.Tensor) -> th.Tensor:
        """Return the measurements at the first ``size`` of these rows.

        What is missing is measured, and with it what will be missing next, to the number that is measured at once.
        """
        chunk = rows[: self.size]
        is_known = self._is_known[chunk]
        if not bool(is_known.all()):
            missing = rows[~self._is_known[rows]][: self.size] if bool(is_known.any()) else chunk
            self._values[missing] = self.measure(missing)
            self._is_known[missing] = True
        return self._values[chunk]

    def forget(self) -> None:
        """Everything may have changed."""
        self._is_known.fill_(False)


def refined(quick: Evaluation, exact: Evaluation, bound: float) -> Evaluation:
    """Return ``quick`` with ``exact`` measurements where it neither clearly obeys a bound nor clearly violates it.

    Clear is what is away from the bound by 0.1 % and 10⁻⁶, a thousand times what float32 loses in a network.

    :param quick: Right but for rounding.
    :param exact: Decides near the bound, and where ``quick`` is not finite.
    :param bound: The bound.
    """

    margin = 1e-3 * bound + 1e-6

    def measure(index: th.Tensor) -> th.Tensor:
        values = quick(index)
        if bool((values.abs() < bound - margin).all()):
            return values
        is_open = ~(((values - bound).abs() > margin) & values.isfinite())
        return values.index_put((is_open,), exact(index[is_open])) if bool(is_open.any()) else values

    return measure


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


class Checkpoint:
    """Parameters of a policy and the state of its optimiser before an update."""

    def __init__(self, policy: nn.Module, optimizer: th.optim.Optimizer) -> None:
        self.policy = policy
        self.optimizer = optimizer
        self._values = {x: x.detach().clone() for x in [*policy.parameters(), *statistics(policy)]}
        self._state = copy.deepcopy(optimizer.state_dict())

    def values(self, tensors: list[th.Tensor]) -> list[th.Tensor]:
        """Return the values that some of the tensors had."""
        return [self._values[x] for x in tensors]

    @th.no_grad()
    def restore_unless_finite(self) -> bool:
        """Put everything back if a parameter is not finite, and return whether it was so."""
        if bool(nn.utils.parameters_to_vector(self._values).isfinite().all()):
            return False
        self.restore()
        return True

    @th.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for p, value in self._values.items():
            p.copy_(value)
        self.optimizer.load_state_dict(self._state)
