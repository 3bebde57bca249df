"""The parameters of SB3's action distributions as plain tensors: kept, indexed, and compared by KL divergence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import singledispatch

import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from torch import Tensor

from sb3_trl.distributions import ProjectedGaussianDistribution
from sb3_trl.penalty import bernoulli_kl, categorical_kl
from sb3_trl.projections import Gaussian
from sb3_trl.projections.gaussian import kl as gaussian_kl

__all__ = ["ActionParameters", "action_parameters", "join", "without_validation"]


@dataclass(frozen=True)
class ActionParameters:
    """What an action distribution is at n states, apart from the object that SB3 refills.

    :param tensors: Its parameters, n rows each.
    :param divergence: Maps the parameters of p and of q to KL(p ‖ q) in nats, ``(n,)``.
    """

    tensors: tuple[Tensor, ...]
    divergence: Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]

    def kl(self, other: ActionParameters) -> Tensor:
        """Return KL(self ‖ other) in nats, differentiable in both; shape ``(n,)``."""
        return self.divergence(self.tensors, other.tensors)

    def detach(self) -> ActionParameters:
        """Return the same parameters without their gradient history."""
        return ActionParameters(tuple(t.detach() for t in self.tensors), self.divergence)

    def double(self) -> ActionParameters:
        """Return the same parameters in float64, in which divergences are compared with bounds."""
        return ActionParameters(tuple(t.double() for t in self.tensors), self.divergence)

    def total(self) -> Tensor:
        """Return the sum of all parameters, a scalar that depends on every one of them."""
        return th.stack([t.sum() for t in self.tensors]).sum()

    def __getitem__(self, index: Tensor | slice) -> ActionParameters:
        """Return the parameters at some of the states."""
        return ActionParameters(tuple(t[index] for t in self.tensors), self.divergence)


@contextmanager
def without_validation() -> Iterator[None]:
    """Let torch's distributions take numbers that are not finite, which the caller deals with."""
    setting = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        th.distributions.Distribution.set_default_validate_args(setting)


def join(parts: Sequence[ActionParameters]) -> ActionParameters:
    """Return the parameters of several batches of states as one."""
    tensors = zip(*(part.tensors for part in parts), strict=True)
    return ActionParameters(tuple(th.cat(column) for column in tensors), parts[0].divergence)


@singledispatch
def action_parameters(distribution: Distribution) -> ActionParameters:
    """Return the parameters of a distribution, with their gradient history.

    Knows every distribution for which SB3 has a closed form of the divergence: diagonal Gaussian, gSDE's,
    categorical, multi-categorical, Bernoulli, and this package's Gaussians.

    :raises TypeError: for any other.
    """
    raise TypeError(
        f"No KL divergence is known for {type(distribution).__name__}: register one with "
        "sb3_trl.action_parameters.action_parameters.register."
    )


@action_parameters.register(DiagGaussianDistribution)
@action_parameters.register(StateDependentNoiseDistribution)
def _(distribution: DiagGaussianDistribution) -> ActionParameters:
    # A squashing of the actions (gSDE's tanh) is a bijection and leaves the divergence as it is.
    normal = distribution.distribution
    return ActionParameters((normal.mean, normal.stddev), _diagonal_kl)


@action_parameters.register
def _(distribution: ProjectedGaussianDistribution) -> ActionParameters:
    gaussian = distribution.gaussian
    event = gaussian.scale.shape[-1:] if gaussian.is_diagonal else gaussian.scale.shape[-2:]
    scale = gaussian.scale.expand(*gaussian.mean.shape[:-1], *event)
    return ActionParameters((gaussian.mean, scale), _diagonal_kl if gaussian.is_diagonal else _full_kl)


@action_parameters.register
def _(distribution: CategoricalDistribution) -> ActionParameters:
    return ActionParameters((distribution.distribution.logits,), _categorical_kl)


@action_parameters.register
def _(distribution: MultiCategoricalDistribution) -> ActionParameters:
    return ActionParameters(tuple(factor.logits for factor in distribution.distribution), _categorical_kl)


@action_parameters.register
def _(distribution: BernoulliDistribution) -> ActionParameters:
    return ActionParameters((distribution.distribution.logits,), _bernoulli_kl)


def _diagonal_kl(p: tuple[Tensor, ...], q: tuple[Tensor, ...]) -> Tensor:
    mean, cov = gaussian_kl(Gaussian(p[0], std=p[1]), Gaussian(q[0], std=q[1]))
    return mean + cov


def _full_kl(p: tuple[Tensor, ...], q: tuple[Tensor, ...]) -> Tensor:
    mean, cov = gaussian_kl(Gaussian(p[0], scale_tril=p[1]), Gaussian(q[0], scale_tril=q[1]))
    return mean + cov


def _categorical_kl(p: tuple[Tensor, ...], q: tuple[Tensor, ...]) -> Tensor:
    return th.stack([categorical_kl(a, b) for a, b in zip(p, q, strict=True)]).sum(0)


def _bernoulli_kl(p: tuple[Tensor, ...], q: tuple[Tensor, ...]) -> Tensor:
    return bernoulli_kl(p[0], q[0])
