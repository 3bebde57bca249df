"""What can be computed from the parameters of each kind of action distribution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch as th
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch import Tensor
from torch.nn import functional as F

from sb3_trl.policies.masks import masked_bits, masked_logits
from sb3_trl.projections import Gaussian
from sb3_trl.projections.categorical import bernoulli_kl, categorical_kl
from sb3_trl.projections.gaussian import kl as gaussian_kl

__all__ = ["BERNOULLI", "CATEGORICAL", "DIAGONAL", "FULL", "Family", "Parameters", "family_of_gsde"]


Parameters: TypeAlias = tuple[Tensor, ...]


def _no_masks(parameters: Parameters, masks: Tensor) -> Parameters:
    raise ValueError("Actions without a finite number of choices cannot be masked.")


@dataclass(frozen=True)
class Family:
    """What can be computed from the parameters of one kind of action distribution.

    :param kl: Maps the parameters of p and of q to KL(p ‖ q) in nats, ``(n,)``.
    :param log_prob: Maps parameters and actions to log-densities or log-probabilities, ``(n,)``.
    :param entropy: Maps parameters to entropies in nats, ``(n,)``; ``None`` where there is no closed form.
    :param masked: Maps parameters and masks ``(n, m)`` to the parameters without what is impossible.
    """

    kl: Callable[[Parameters, Parameters], Tensor]
    log_prob: Callable[[Parameters, Tensor], Tensor]
    entropy: Callable[[Parameters], Tensor | None]
    masked: Callable[[Parameters, Tensor], Parameters] = _no_masks


def family_of_gsde(distribution: StateDependentNoiseDistribution) -> Family:
    """Return the family of gSDE's Gaussians, whose actions may be squashed."""
    bijector = distribution.bijector
    if bijector is None:
        return DIAGONAL

    def log_prob(parameters: Parameters, actions: Tensor) -> Tensor:
        gaussian_actions = bijector.inverse(actions)
        return _diagonal(parameters).log_prob(gaussian_actions) - bijector.log_prob_correction(gaussian_actions).sum(-1)

    # A squashing of the actions (tanh) is a bijection and leaves the divergence as it is.
    return Family(_diagonal_kl, log_prob, lambda parameters: None)


def _diagonal(parameters: Parameters) -> Gaussian:
    return Gaussian(parameters[0], std=parameters[1])


def _full(parameters: Parameters) -> Gaussian:
    return Gaussian(parameters[0], scale_tril=parameters[1])


def _diagonal_kl(p: Parameters, q: Parameters) -> Tensor:
    mean, cov = gaussian_kl(_diagonal(p), _diagonal(q))
    return mean + cov


def _full_kl(p: Parameters, q: Parameters) -> Tensor:
    mean, cov = gaussian_kl(_full(p), _full(q))
    return mean + cov


def _categorical_kl(p: Parameters, q: Parameters) -> Tensor:
    return th.stack([categorical_kl(a, b) for a, b in zip(p, q, strict=True)]).sum(0)


def _categorical_log_prob(factors: Parameters, actions: Tensor) -> Tensor:
    columns = actions.long().reshape(len(actions), len(factors)).unsqueeze(-1).unbind(1)
    return th.cat([logits.gather(-1, a) for logits, a in zip(factors, columns, strict=True)], -1).sum(-1)


def _categorical_entropy(factors: Parameters) -> Tensor:
    # As torch: the most negative finite number stands for the −∞ of an impossible action.
    finite = (logits.clamp(min=th.finfo(logits.dtype).min) for logits in factors)
    return th.stack([-(logits.exp() * logits).sum(-1) for logits in finite]).sum(0)


def _masked_categories(factors: Parameters, masks: Tensor) -> Parameters:
    parts = masks.split([logits.shape[-1] for logits in factors], -1)
    return tuple(masked_logits(logits, own).log_softmax(-1) for logits, own in zip(factors, parts, strict=True))


def _masked_bits(parameters: Parameters, masks: Tensor) -> Parameters:
    return (masked_bits(parameters[0], masks),)


def _bernoulli_kl(p: Parameters, q: Parameters) -> Tensor:
    return bernoulli_kl(p[0], q[0])


def _bernoulli_log_prob(parameters: Parameters, actions: Tensor) -> Tensor:
    (logits,) = parameters
    return -F.binary_cross_entropy_with_logits(logits, actions.to(logits.dtype), reduction="none").sum(-1)


def _bernoulli_entropy(parameters: Parameters) -> Tensor:
    (logits,) = parameters
    return F.binary_cross_entropy_with_logits(logits, logits.sigmoid(), reduction="none").sum(-1)


DIAGONAL = Family(_diagonal_kl, lambda p, a: _diagonal(p).log_prob(a), lambda p: _diagonal(p).entropy())


FULL = Family(_full_kl, lambda p, a: _full(p).log_prob(a), lambda p: _full(p).entropy())


CATEGORICAL = Family(_categorical_kl, _categorical_log_prob, _categorical_entropy, _masked_categories)


BERNOULLI = Family(_bernoulli_kl, _bernoulli_log_prob, _bernoulli_entropy, _masked_bits)
