"""Categorical action distributions, one or several factors per action, and the divergence between them.

``log_probs`` is ``(*batch, factors, k)``: a Discrete action is one factor, a MultiDiscrete one has several, padded
with −∞ to the largest, and a Bernoulli, a factor of a MultiBinary one, is a categorical of two. −∞ is the
log-probability of an action that is impossible in this state; it takes no part in anything, nor do its derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sb3_trl.projections.distribution import Bound, Distribution, Rule
from sb3_trl.projections.tilting import divergence_terms, is_near, tilt
from sb3_trl.projections.tracing import can_branch, is_plain

__all__ = ["Categorical", "bernoulli_kl", "categorical_kl"]

#: Stands for −∞ where it is computed with: its exponential is 0, and 0 times it is 0. Exact in every dtype.
_FLOOR = -(2.0**100)
#: An entropy bound may be above the largest entropy by what rounding does to the entropy of a uniform policy.
_SLACK = 1e-6
#: Beyond this t nothing changes but the log-probabilities of what is impossible for all purposes.
_FURTHEST = 1e12


class Categorical(Distribution):
    """A batch of products of independent categoricals.

    :param log_probs: Normalised log-probabilities, ``(*batch, factors, k)``; −∞ where an action is impossible.
    :raises ValueError: if there are fewer than two dimensions, or no actions.
    """

    __slots__ = ("_impossible", "log_probs")
    bound_names: ClassVar[tuple[str, ...]] = ("kl_bound",)

    def __init__(self, log_probs: Tensor) -> None:
        if log_probs.dim() < 2 or 0 in log_probs.shape[-2:]:
            raise ValueError(
                f"log_probs has shape {tuple(log_probs.shape)}: it must end in (factors, actions), with one factor "
                "for a Discrete action."
            )
        self.log_probs = log_probs
        self._impossible: Tensor | bool | None = None

    @classmethod
    def from_logits(cls, logits: Tensor, sizes: Sequence[int] | None = None, mask: Tensor | None = None) -> Categorical:
        """Return the categoricals with these logits.

        :param logits: ``(*batch, n)``, those of all factors one after the other.
        :param sizes: How many actions each factor has, n in all; one factor by default.
        :param mask: Whether an action is possible; broadcasts to the logits.
        :raises ValueError: if the sizes do not add up to n, or a mask leaves a factor no action.
        """
        sizes = logits.shape[-1:] if sizes is None else [int(size) for size in sizes]
        if sum(sizes) != logits.shape[-1] or min(sizes) < 1:
            raise ValueError(f"sizes={list(sizes)} must be positive and add up to the {logits.shape[-1]} logits.")
        if mask is not None:
            logits = logits.masked_fill(mask.logical_not(), -math.inf)
        result = cls(_in_factors(logits, sizes).log_softmax(-1))
        if mask is not None and can_branch(logits):
            _check_possible(_in_factors(logits.detach(), sizes))
        return result

    @classmethod
    def from_bernoulli_logits(cls, logits: Tensor) -> Categorical:
        """Return independent Bernoullis, factors with the actions 0 and 1.

        :param logits: log p/(1 − p), ``(*batch, factors)``; ±∞ are p = 1 and 0.
        """
        return cls(F.logsigmoid(torch.stack([-logits, logits], -1)))

    def __repr__(self) -> str:
        return f"Categorical(log_probs: {tuple(self.log_probs.shape)}, {self.log_probs.dtype})"

    @property
    def dim(self) -> int:
        """Number of factors of one action."""
        return self.log_probs.shape[-2]

    @property
    def batch_shape(self) -> torch.Size:
        """The dimensions of the batch."""
        return self.log_probs.shape[:-2]

    @property
    def tensor(self) -> Tensor:
        """The log-probabilities."""
        return self.log_probs

    @property
    def probs(self) -> Tensor:
        """The probabilities, ``(*batch, factors, k)``."""
        return self.log_probs.exp()

    @property
    def impossible(self) -> Tensor | None:
        """Where an action is impossible, ``(*batch, factors, k)``; ``None`` if all are known to be possible."""
        if not can_branch(self.log_probs):
            return self.log_probs.isneginf()
        if self._impossible is None:
            values = self.log_probs.detach()
            some = values.numel() > 0 and not float(values.amin()) > -math.inf
            self._impossible = some and values.isneginf()
        return self._impossible if isinstance(self._impossible, Tensor) else None

    @property
    def finite(self) -> Tensor:
        """The log-probabilities with a low number for −∞: safe to compute with, and without derivatives there."""
        return self.log_probs if self.impossible is None else self.log_probs.clamp(min=_FLOOR)

    def masked(self, log_probs: Tensor) -> Tensor:
        """Return log-probabilities of the same shape with −∞ where an action is impossible here."""
        return log_probs if self.impossible is None else log_probs.masked_fill(self.impossible, -math.inf)

    def double(self) -> Categorical:
        """Return the categoricals in float64."""
        return Categorical(self.log_probs.double())

    def detach(self) -> Categorical:
        """Return the same categoricals as a constant, without derivatives of either mode; itself if it has none."""
        if is_plain() and not self.log_probs.requires_grad:
            return self
        return Categorical(self.log_probs.detach())

    def __getitem__(self, index: Tensor | slice) -> Categorical:
        """Return the categoricals at ``index`` of the first batch dimension."""
        return Categorical(self.log_probs[index])

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probability of actions ``(*batch, factors)``; shape ``(*batch,)``."""
        if actions.shape[-1:] != (self.dim,):
            raise ValueError(
                f"actions have shape {tuple(actions.shape)}: they must end in ({self.dim},), one for each factor."
            )
        log_probs, index = self.log_probs, actions.long()
        if actions.shape[:-1] != self.batch_shape:
            batch = torch.broadcast_shapes(actions.shape[:-1], self.batch_shape)
            log_probs, index = log_probs.expand(*batch, *log_probs.shape[-2:]), index.expand(*batch, self.dim)
        return log_probs.gather(-1, index.unsqueeze(-1)).squeeze(-1).sum(-1)

    def entropy(self) -> Tensor:
        """−Σ p log p in nats, of all factors; shape ``(*batch,)``."""
        log_p = self.finite
        return -(log_p.exp() * log_p).sum((-2, -1))

    def kl(self, other: Categorical) -> Tensor:
        """KL(self ‖ other) in nats, of all factors; shape ``(*batch,)``."""
        return categorical_kl(self.log_probs, other.log_probs).sum(-1)

    def sample(self) -> Tensor:
        """Draw actions, integers; shape ``(*batch, factors)``."""
        rows = self.probs.reshape(-1, self.log_probs.shape[-1])
        return torch.multinomial(rows, 1, replacement=True).reshape(self.log_probs.shape[:-1])

    def mode(self) -> Tensor:
        """The likeliest actions, integers; shape ``(*batch, factors)``."""
        return self.log_probs.argmax(-1)

    def with_entropy(self, bound: Bound, equality: bool = False) -> Categorical:
        """Return log p̃ ∝ t·log p with the largest t ≤ 1 at which H(p̃) ≥ β, one t for all factors of a state.

        It is the nearest such policy, min KL(p̃ ‖ p) s.t. H(p̃) ≥ β, on the way to the uniform distribution over the
        possible actions, whose entropy is the largest there is. Where H(p) ≥ β it comes back bit for bit. With
        ``equality`` H(p̃) = β, and t may be above 1. Actions that are equally likely stay so, whatever t: a uniform
        policy stays as it is. Where Python may not look at numbers (see ``can_branch``), a β that cannot be reached
        is approached.

        :raises ValueError: if β is above the largest entropy at a state, or, with ``equality``, not positive.
        """
        log_p, largest = self.finite, self.largest_entropy()
        bound = torch.as_tensor(bound, dtype=torch.float64, device=log_p.device)
        if can_branch(bound):
            self._check_entropy(bound, largest, equality)
        with torch.no_grad():
            entropy = self.detach().double().entropy()
            bound = bound.expand(entropy.shape)
            active = entropy != bound if equality else ~(entropy >= bound)
            limit = torch.where(entropy < bound, torch.ones_like(bound), _FURTHEST) if equality else 1.0
            # KL(p̃ ‖ uniform) = log k − H(p̃); less than this lower bound is lost in rounding.
            room = (largest - bound).clamp(min=1e-13)
        return Categorical(self.masked(tilt(log_p, self._log_uniform(), room, active, limit)))

    def largest_entropy(self) -> Tensor:
        """The entropy of the uniform distribution over the possible actions, in nats; float64, ``(*batch,)``."""
        return self._log_counts().sum(-1)

    def _log_counts(self) -> Tensor:
        """The logarithm of how many actions are possible, in float64; ``(*batch, factors)``."""
        size, device = self.log_probs.shape, self.log_probs.device
        if self.impossible is None:
            return torch.full(size[:-1], math.log(size[-1]), dtype=torch.float64, device=device)
        return (~self.impossible).sum(-1).double().log()

    def _log_uniform(self) -> Tensor:
        """The finite log-probabilities of the uniform distribution over the possible actions, in float64."""
        log_uniform = -self._log_counts().unsqueeze(-1).expand(self.log_probs.shape)
        return log_uniform if self.impossible is None else log_uniform.masked_fill(self.impossible, _FLOOR)

    def _check_entropy(self, bound: Tensor, largest: Tensor, equality: bool) -> None:
        if equality and not bool(((bound > 0) | (largest == 0)).all()):  # a single action has no more than 0
            raise ValueError(
                f"An entropy of {bound.min().item():.4g} nats was asked for, but that of a categorical policy is "
                "positive: give a positive entropy bound, or do without equality."
            )
        high = (bound > largest + _SLACK).expand(largest.shape)
        if bool(high.any()):
            state = _first(high)
            raise ValueError(
                f"The entropy bound is {bound.expand(largest.shape)[state].item():.4g} nats{_at(state)}, but no policy "
                f"over the actions possible there has more than {largest[state].item():.4g}: lower it."
            )

    # --- what a projection asks ---

    def check(self, old: Distribution) -> None:
        """Raise a ``ValueError`` unless both are categoricals over the same actions.

        Where Python may not look at numbers (see ``can_branch``), nobody does whether the same are impossible.
        """
        if not isinstance(old, Categorical):
            raise ValueError(f"new is a Categorical and old a {type(old).__name__}: they must be of one kind.")
        if self.log_probs.shape[-2:] != old.log_probs.shape[-2:]:
            new_size, old_size = ("×".join(map(str, x.log_probs.shape[-2:])) for x in (self, old))
            raise ValueError(f"new has {new_size} factors × actions and old has {old_size}: they must be equal.")
        if can_branch(self.log_probs) and not (self.impossible is None and old.impossible is None):
            differs = (self.log_probs.isneginf() != old.log_probs.isneginf()).flatten(-2).any(-1)
            if bool(differs.any()):
                raise ValueError(
                    f"new and old do not have the same actions as possible{_at(_first(differs))}: make both with the "
                    "mask of that state."
                )

    def check_projection(self, projection: Rule) -> None:
        """Raise a ``NotImplementedError`` if ``projection`` is for Gaussians."""
        if not projection.projects_categoricals:
            projection.refuse_categoricals()

    def projected_by(self, projection: Rule, old: Categorical, *bounds: Bound) -> Categorical:
        """Return the projection into the region around ``old``."""
        return Categorical(projection.project_categorical(self, old, *bounds))

    def distance_by(self, projection: Rule, other: Categorical) -> tuple[Tensor]:
        """Return the projection's d(self, other), one part."""
        return (projection.categorical_distance(self, other),)

    def penalty_by(self, projection: Rule, target: Categorical) -> Tensor:
        """Return the projection's distance to ``target``; shape ``(*batch,)``."""
        return projection.categorical_distance(self, target)


def categorical_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p (log p − log q) in nats, zero with zero gradient for p = q.

    Small differences keep their digits (see ``divergence_terms``). Can be differentiated twice.

    :param log_p: Normalised log-probabilities, ``(*batch, k)``; −∞ is an impossible action.
    :param log_q: Likewise.
    :return: ``(*batch,)``; infinite where q excludes an action that p does not.
    """
    d = log_p - log_q
    if is_near(d):
        return divergence_terms(log_p.exp(), d).sum(-1)
    # Filled in before anything is computed: derivatives of 0·∞ are NaN, even where it is not chosen.
    log_p = log_p.clamp(min=_FLOOR)
    p = log_p.exp()
    log_q = torch.where(p == 0, log_q.clamp(min=_FLOOR), log_q)
    return divergence_terms(p, log_p - log_q, log_q.exp()).sum(-1)


def bernoulli_kl(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """KL between products of independent Bernoullis, in nats.

    :param logits_p: log p/(1 − p), ``(*batch, k)``; ±∞ are p = 1 and 0.
    :param logits_q: Likewise.
    :return: ``(*batch,)``.
    """
    return Categorical.from_bernoulli_logits(logits_p).kl(Categorical.from_bernoulli_logits(logits_q))


def _in_factors(logits: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return ``(*batch, sum(sizes))`` as ``(*batch, factors, k)``, padded with −∞."""
    most = max(sizes)
    if min(sizes) == most:
        return logits.unflatten(-1, (len(sizes), most))
    parts = logits.split(list(sizes), -1)
    return torch.stack([F.pad(part, (0, most - part.shape[-1]), value=-math.inf) for part in parts], -2)


def _check_possible(logits: Tensor) -> None:
    none = logits.isneginf().all(-1)
    if bool(none.any()):
        *state, factor = _first(none)
        raise ValueError(f"The mask leaves no action for factor {factor}{_at(tuple(state))}: leave at least one.")


def _first(where: Tensor) -> tuple[int, ...]:
    """Return the index of the first True."""
    return tuple(int(i) for i in where.nonzero()[0])


def _at(state: tuple[int, ...]) -> str:
    """Return " at state 3", or nothing where there is no batch."""
    return f" at state {state[0] if len(state) == 1 else state}" if state else ""
