"""Exponential tilting: the categoricals between an old one, q, and a new one, p, and how far from q they are.

    log p̃ = log q + t·d − A(t),    d = log p − log q,    A(t) = log Σ q exp(t·d)

KL(p̃ ‖ q) = t·A′(t) − A(t) grows with t, from 0 at q; A′ and A″ are the mean and the variance of d under p̃. Log-
probabilities are ``(*batch, factors, k)`` and finite, an impossible action's so low that its probability is 0. There
is one t for all factors of a state, whose divergences add up. Everything is computed in float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sb3_trl.projections.derivatives import Derivative, with_derivative
from sb3_trl.projections.root import Function, find_root
from sb3_trl.projections.tracing import can_branch

__all__ = ["divergence_terms", "is_near", "tilt"]

#: Where log p − log q is below this, p is nothing beside q, and q/p might be too large a number.
_FAR = -30.0


def tilt(new: Tensor, old: Tensor, bound: Tensor, active: Tensor, limit: Tensor | float = 1.0) -> Tensor:
    """Return log p̃ with KL(p̃ ‖ q) = ε where ``active``, and ``new`` bit for bit elsewhere.

    Differentiable, once, in ``new``. Where ``can_branch``, only the active states are computed.

    :param new: log p, ``(*batch, factors, k)``; what is returned is of its dtype.
    :param old: log q, float64, without derivatives; broadcasts to ``new``.
    :param bound: ε, float64, positive; broadcasts to the batch.
    :param active: ``(*batch,)``.
    :param limit: An upper limit of t, which is t where the bound is out of reach; broadcasts to the batch.
    """
    limit = torch.as_tensor(limit, dtype=torch.float64, device=new.device)
    if not can_branch(active):
        return torch.where(active[..., None, None], _tilt(new, old, bound, limit), new)
    if new.dim() != 3:
        flat, olds = (x.expand_as(new).reshape(-1, *new.shape[-2:]) for x in (new, old))
        active, bound, limit = (x.expand(active.shape).reshape(-1) for x in (active, bound, limit))
        return tilt(flat, olds, bound, active, limit).reshape(new.shape)
    if bool(active.all()):
        return _tilt(new, old, bound, limit)
    rows = active.nonzero().squeeze(-1)
    bounds, limits = (x.expand(active.shape)[rows] if x.dim() else x for x in (bound, limit))
    return new.index_put((rows,), _tilt(new[rows], old.expand_as(new)[rows], bounds, limits))


def divergence_terms(p: Tensor, d: Tensor, q: Tensor | None = None) -> Tensor:
    """Return p·d − p + q for each action, whose sum is KL(p ‖ q), with d = log p − log q.

    As p·φ(d) with φ(d) = d − 1 + e⁻ᵈ ≈ ½d², in which small differences keep their digits. Every term is positive,
    and a p or q that does not quite add up to 1 changes the sum by the square of what is missing.

    :param q: May be missing where ``is_near(d)``.
    """
    if q is None:
        return p * (d + torch.expm1(-d))
    near = p * (d + torch.expm1(-d.clamp(min=_FAR)))
    return near + torch.relu(torch.sub(q, p, alpha=math.exp(-_FAR)))


def is_near(d: Tensor) -> bool:
    """Return whether q/p is a moderate number for every action; False where Python may not look."""
    if not can_branch(d):
        return False
    if d.numel() == 0:
        return True
    least, largest = d.detach().aminmax()
    return float(least) >= _FAR and float(largest) < math.inf


class _Path(NamedTuple):
    """The categoricals between q and p, n states.

    :param log_old: log q.
    :param step: d.
    :param old: q, if some state is far from it.
    """

    log_old: Tensor
    step: Tensor
    old: Tensor | None

    def rows(self, index: Tensor) -> Function:
        """Return the divergence of some of the states alone."""
        old = None if self.old is None else self.old[index]
        return _Path(self.log_old[index], self.step[index], old).divergence

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return p̃ and log p̃ − log q = t·d − A(t), in which small differences keep their digits."""
        d = t[..., None, None] * self.step
        p = self.log_old + d
        largest = p.amax(-1, keepdim=True)
        p = p.sub_(largest).exp_()
        total = p.sum(-1, keepdim=True)
        return p.div_(total), d.sub_(largest.add_(total.log()))

    def divergence(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return KL(t), t·KL′(t) = t²·A″, and how t·KL′(t) grows: 2 + t·A‴/A″, its slope if all are logarithms."""
        p, d = self.at(t)
        value = divergence_terms(p, d, self.old).sum((-2, -1))
        d.sub_((p * d).sum(-1, keepdim=True))
        moment = p.mul_(d).mul_(d)
        slope = moment.sum((-2, -1))
        return value, slope, moment.mul_(d).sum((-2, -1)).div_(slope).add_(2)

    def start(self, bound: Tensor) -> Tensor:
        """Return t near the root of KL(t) = ε: with γ = A‴/A″ at q, KL(t) ≈ A″·∫ s·exp(γs) ds, from 0 to t."""
        q = self.log_old.exp() if self.old is None else self.old
        d = self.step - (q * self.step).sum(-1, keepdim=True)
        moment = q * d * d
        variance = moment.sum((-2, -1)).clamp(min=1e-100)
        straight = (2 * bound / variance).sqrt()
        # The smallest summand only keeps 0/0 away.
        bend = (2 / 3 * straight * (moment * d).sum((-2, -1)) / variance).clamp(min=-0.99) + 1e-30
        return straight * torch.log1p(bend) / bend


def _tilt(new: Tensor, old: Tensor, bound: Tensor, limit: Tensor) -> Tensor:
    """Return log p̃ with KL(p̃ ‖ q) = ε for all states."""
    with torch.no_grad():
        step = new.detach().double() - old
        # Up to t = 1 no p̃ is smaller than both p and q.
        near = is_near(step) and bool((limit <= 1).all())
        if not near:  # What is likely keeps its digits, however far t goes: a constant in d changes nothing.
            step = step - step.amax(-1, keepdim=True)
        path = _Path(old, step, None if near else old.exp())
        t = find_root(path.divergence, bound, path.start(bound), limit, path.rows)
        p, d = path.at(t)
        normal = step - (p * step).sum(-1, keepdim=True)
        scaled = p * normal
        size = (scaled * normal).sum((-2, -1), keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
        constants = (t[..., None, None], p, normal, scaled / size)
    return with_derivative((old + d).to(new.dtype), new, _BOUNDARY, *constants)


def _forward(step: Tensor, t: Tensor, p: Tensor, n: Tensor, m: Tensor) -> Tensor:
    """d log p̃ = t(c − n⟨m, c⟩): the part of a step c along the boundary, without what changes nothing but Σ p̃.

    :param n: The gradient of the boundary, d less its mean under p̃.
    :param m: p̃·n/⟨p̃·n, n⟩.
    """
    c = step - (p * step).sum(-1, keepdim=True)
    return t * torch.addcmul(c, n, (m * c).sum((-2, -1), keepdim=True), value=-1)


def _transpose(gradient: Tensor, t: Tensor, p: Tensor, n: Tensor, m: Tensor) -> Tensor:
    c = t * gradient
    inner = (n * c).sum((-2, -1), keepdim=True)
    return torch.addcmul(c - m * inner, p, c.sum(-1, keepdim=True), value=-1)


_BOUNDARY = Derivative("the projection of log-probabilities", _forward, _transpose)
