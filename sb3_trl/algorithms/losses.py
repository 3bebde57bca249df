"""Losses as pure functions of tensors, scalars that are averaged over a minibatch, and what they are made of."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch as th
from torch import Tensor

from sb3_trl.projections import Distribution
from sb3_trl.projections.projection import Projection

__all__ = [
    "Weights",
    "clipped_surrogate_loss",
    "clipped_values",
    "normalize",
    "normalize_by_task",
    "surrogate_loss",
    "trust_region_loss",
    "value_loss",
]


D = TypeVar("D", bound=Distribution)


class Weights(NamedTuple):
    """What the terms of a loss are multiplied by, and how far ratios and values may move; ``None`` is for none.

    They are data of an update, not constants: compiled steps take them as tensors.
    """

    value: Any = None
    entropy: Any = None
    trust_region: Any = None
    clip_range: Any = None
    clip_range_vf: Any = None


def normalize(advantages: Tensor) -> Tensor:
    """Return advantages with mean 0 and standard deviation 1; a single one comes back as it is."""
    if len(advantages) < 2:
        return advantages
    std, mean = th.std_mean(advantages)
    return (advantages - mean) / (std + 1e-8)


def normalize_by_task(advantages: Tensor, tasks: Tensor) -> Tensor:
    """Return advantages with mean 0 and standard deviation 1 among those of each task; a task's only one becomes 0.

    :param advantages: ``(n,)``.
    :param tasks: Number of each one's task, ``(n,)``.
    """
    result = th.zeros_like(advantages)
    for number in tasks.unique():
        is_own = tasks == number
        if int(is_own.sum()) > 1:
            result[is_own] = normalize(advantages[is_own])
    return result


def surrogate_loss(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor) -> Tensor:
    """−E[π(a|s)/π_old(a|s)·Â], the unclipped importance-sampled objective (eq. 1 of Otto et al., 2021)."""
    return (th.exp(log_prob - old_log_prob) * -advantages).mean()


def clipped_surrogate_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip_range: Tensor
) -> tuple[Tensor, Tensor]:
    """−E[min(r·Â, clip(r, 1 − c, 1 + c)·Â)], r = π(a|s)/π_old(a|s) (eq. 7 of Schulman et al., 2017).

    Returns with it the share of samples whose ratio was clipped.
    """
    ratio = th.exp(log_prob - old_log_prob)
    clipped = th.clamp(ratio, 1 - clip_range, 1 + clip_range)
    loss = -th.minimum(ratio * advantages, clipped * advantages).mean()
    return loss, ((ratio.detach() - 1).abs() > clip_range).to(ratio.dtype).mean()


def trust_region_loss(new: D, projected: D, projection: Projection | None) -> Tensor:
    """E[d(π_θ, stop-gradient(π̃))], the regression term of eq. 12; 0 without a projection."""
    if projection is None:
        return projected.entropy().new_zeros(())
    return projection.penalty(new, projected).mean()


def clipped_values(values: Tensor, old_values: Tensor, clip_range: Tensor | None) -> Tensor:
    """Return the values at most ``clip_range`` away from the old ones; ``None`` leaves them as they are."""
    if clip_range is None:
        return values
    return old_values + (values - old_values).clamp(-clip_range, clip_range)


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """E[(V(s) − R)²]."""
    return (values - returns).square().mean()
