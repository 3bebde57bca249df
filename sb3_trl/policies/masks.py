"""Actions that are impossible at some states, after sb3-contrib's convention for masks.

A mask has one entry for each action of each factor, one factor after the other: ``n`` for ``Discrete(n)``,
``sum(nvec)`` for ``MultiDiscrete(nvec)``, ``2 n`` for ``MultiBinary(n)`` (0 and 1 of the first bit, of the second, …).
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from torch import Tensor

from sb3_trl.policies.categorical import ProjectedCategoricalDistribution

__all__ = ["Masked", "apply_masks", "check_masks", "masked_bits", "masked_logits", "sizes_of", "unmasked"]


_FAR = 1e6


class Masked(NamedTuple):
    """Observations, and which actions are possible there; wherever observations are data, these can be."""

    observations: Any
    action_masks: Tensor  # (n, m), bool


def unmasked(observations: Any) -> tuple[Any, Tensor | None]:
    """Return observations and masks, ``None`` where there are none."""
    return observations if isinstance(observations, Masked) else (observations, None)


def sizes_of(space: spaces.Space) -> list[int]:
    """Return how many actions each factor of a discrete action space has.

    :raises ValueError: for a space whose actions have no masks.
    """
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return [int(n) for n in space.nvec]
    if isinstance(space, spaces.MultiBinary) and isinstance(space.n, int):
        return [2] * space.n
    raise ValueError(f"Actions of {space} have no masks: they are for Discrete, MultiDiscrete and MultiBinary spaces.")


def check_masks(masks: Any, space: spaces.Space, n: int, where: str = "") -> np.ndarray:
    """Return masks of n states as an array ``(n, m)`` of booleans.

    :param masks: As an environment or a user gives them.
    :param space: Of the actions.
    :param n: The number of states, of environments for example.
    :param where: When it was, for the error.
    :raises ValueError: if there is not one entry per action, or nothing is left to do in one of them.
    """
    sizes = sizes_of(space)
    array = np.asarray(masks)
    if array.size != n * sum(sizes):
        raise ValueError(
            f"The action masks{where} have shape {array.shape}: {n} environments with {space} need "
            f"({n}, {sum(sizes)}), one entry for each action."
        )
    array = array.reshape(n, -1).astype(bool)
    starts = np.cumsum([0, *sizes[:-1]])
    possible = np.logical_or.reduceat(array, starts, axis=1)
    if not possible.all():
        env, factor = (int(x[0]) for x in np.nonzero(~possible))
        of_factor = f" of factor {factor}" if len(sizes) > 1 else ""
        raise ValueError(f"The action mask of environment {env}{where} leaves no action{of_factor} possible.")
    return array


@singledispatch
def apply_masks(distribution: Distribution, masks: Tensor) -> Distribution:
    """Return a distribution of SB3 with what is impossible taken out of it; changes and returns the object.

    :param distribution: Of discrete actions.
    :param masks: ``(n, m)``, bool.
    :raises TypeError: for any other kind.
    """
    raise TypeError(f"A {type(distribution).__name__} has no actions that could be masked.")


@apply_masks.register
def _(distribution: ProjectedCategoricalDistribution, masks: Tensor) -> Distribution:
    return distribution.masked(masks)


@apply_masks.register
def _(distribution: CategoricalDistribution, masks: Tensor) -> Distribution:
    return distribution.proba_distribution(masked_logits(distribution.distribution.logits, masks))


@apply_masks.register
def _(distribution: MultiCategoricalDistribution, masks: Tensor) -> Distribution:
    logits = th.cat([factor.logits for factor in distribution.distribution], -1)
    return distribution.proba_distribution(masked_logits(logits, masks))


@apply_masks.register
def _(distribution: BernoulliDistribution, masks: Tensor) -> Distribution:
    return distribution.proba_distribution(masked_bits(distribution.distribution.logits, masks))


def masked_logits(logits: Tensor, masks: Tensor) -> Tensor:
    """Return logits with −∞ for what is impossible."""
    return logits.masked_fill(~masks, -math.inf)


def masked_bits(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the logits of bits, so far away where something is impossible that its probability is exactly 0.

    (They are finite because torch's Bernoulli multiplies them by 0.)

    :param logits: log p/(1 − p), ``(n, bits)``.
    :param masks: ``(n, 2 · bits)``.
    """
    zero, one = masks.unflatten(-1, (-1, 2)).unbind(-1)
    return logits.masked_fill(~one, -_FAR).masked_fill(~zero, _FAR)
