"""Numbers that change over training, given as a float, ``"lin_<x>"`` or a callable, in one way everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

__all__ = ["BoundSchedule", "StateBound", "as_bound", "as_schedule", "bound_at"]

#: Smallest bound a schedule can reach: the policy stays where it is.
_SMALLEST_BOUND = 1e-12


@dataclass(frozen=True)
class StateBound:
    """A trust-region bound for each state, as a function of the observations.

    ``mean_bound=StateBound(lambda obs: 0.03 * (1 + obs[:, 0].abs()))``

    :param function: Maps a batch of observations, as the policy receives them (after ``VecNormalize``, before
        image scaling), to a tensor of positive numbers, shape ``(batch,)``.
    """

    function: Callable[[Any], th.Tensor]

    def __call__(self, observations: Any) -> th.Tensor:
        """Return the bounds, ``(batch,)``.

        :raises ValueError: if they do not have one positive number for each state.
        """
        bound = th.as_tensor(self.function(observations))
        first = next(iter(observations.values())) if isinstance(observations, dict) else observations
        if bound.shape != first.shape[:1]:
            raise ValueError(
                f"A StateBound returned shape {tuple(bound.shape)} for {len(first)} observations; "
                f"return one bound per state, shape ({len(first)},)."
            )
        if not bool((bound > 0).all()):
            raise ValueError(f"A StateBound returned {bound.min().item():.3g}: every bound must be positive.")
        return bound.detach()


BoundSchedule: TypeAlias = FloatSchedule | StateBound


def as_schedule(name: str, value: float | str | Schedule) -> FloatSchedule:
    """Return a schedule of the remaining progress (1 at the start, 0 at the end), as SB3's schedules are.

    :param name: What it is called in an error message.
    :param value: A number, ``"lin_<x>"`` (from x linearly to 0, as in the RL Zoo), or a callable.
    :raises ValueError: for any other string, and for a negative or non-finite number at the start of training.
    """
    schedule = _schedule(name, value)
    start = schedule(1.0)
    if not 0 <= start < math.inf:
        raise ValueError(f"{name}={value!r} is {start} at the start of training: it must be finite and not negative.")
    return schedule


def _schedule(name: str, value: float | str | Schedule) -> FloatSchedule:
    if isinstance(value, str):
        kind, _, start = value.partition("_")
        try:
            if kind != "lin":
                raise ValueError(kind)
            return FloatSchedule(LinearSchedule(float(start), 0.0, 1.0))
        except ValueError:
            raise ValueError(
                f"{name}={value!r} is no schedule: give a number, 'lin_<number>' or a callable of the "
                "remaining progress."
            ) from None
    if isinstance(value, Real) and not isinstance(value, bool):
        return FloatSchedule(float(value))
    if not callable(value):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: give a number, 'lin_<number>' or a callable.")
    return FloatSchedule(value)


def as_bound(name: str, value: float | str | Schedule | StateBound | th.Tensor) -> BoundSchedule:
    """Return a trust-region bound as a schedule, or as it is where it depends on the state.

    :raises ValueError: if it is not positive and finite at the start of training, or a tensor of several bounds.
    """
    if isinstance(value, StateBound):
        return value
    if isinstance(value, th.Tensor):
        if value.numel() > 1:
            raise ValueError(
                f"{name} is a tensor of {value.numel()} bounds, but rollouts bring new states every time: give a "
                "StateBound, a function of the observations."
            )
        value = float(value)
    schedule = _schedule(name, value)
    if not 0 < schedule(1.0) < math.inf:
        raise ValueError(f"{name}={value} must be positive and finite; a larger bound is a larger trust region.")
    return schedule


def bound_at(bound: BoundSchedule, progress_remaining: float, observations: Any) -> float | th.Tensor:
    """Return the bound now: a number, or a tensor with one for each of ``observations``.

    :raises ValueError: if it is not a number any more.
    """
    if isinstance(bound, StateBound):
        return bound(observations)
    value = bound(progress_remaining)
    if math.isnan(value):
        raise ValueError(f"The bound {bound} is not a number at progress_remaining={progress_remaining}.")
    return max(value, _SMALLEST_BOUND)
