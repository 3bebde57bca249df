"""The scalar equation behind the KL projections: how far may natural parameters move?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from sb3_trl.projections.derivatives import Derivative, with_derivative
from sb3_trl.projections.tracing import can_branch

__all__ = [
    "Function",
    "find_root",
    "implicit_gradient",
    "kl_along_path",
    "kl_at",
    "kl_root",
    "pole_limit",
    "reachable_bound",
]

#: Maps t to f(t), t·f′(t) and more (see ``find_root``).
Function: TypeAlias = Callable[[Tensor], tuple[Tensor, ...]]

#: A Newton step from nearer to the bound than this, relatively, is the last: it leaves about the square of it.
_NEAR = 2e-7
#: Likewise, where a step is of third order and leaves at most twenty times the cube (see ``_step``).
_NEAR_THIRD = 6e-5
_MAX_STEPS = 50
#: Steps before a bracket is kept: up to ε of about 0.3 they are enough.
_FREE_STEPS = 4
#: The share of the equations that are solved apart, if they are the last ones.
_FEW = 0.25
#: Of fewer than so many, none are solved apart: what that costs is more than what it saves.
_MANY = 64
#: Steps where their number cannot depend on the numbers (see ``can_branch``): enough up to ε of about 3.
_UNROLLED_STEPS = 7


def kl_along_path(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(t) = ½ Σ φ(xᵢ) with φ(x) = log(1 + x) − x/(1 + x), and t·KL′(t) = ½ Σ (x/(1 + x))², x = t·a.

    The covariance part of KL(π̃ ‖ π_old) in nats when precisions are interpolated, Σ̃⁻¹ = Σ_o⁻¹ + t(Σ⁻¹ − Σ_o⁻¹)
    (eq. 11), and a + 1 are the eigenvalues of Σ_o Σ⁻¹.

    :param x: ``(*batch, d)``, each above −1.
    """
    q = x / (1 + x)
    return kl_at(x, q), 0.5 * q.square().sum(-1)


def kl_at(x: Tensor, q: Tensor | None = None) -> Tensor:
    """Return KL(t) of ``kl_along_path`` alone.

    :param x: ``(*batch, d)``, each above −1.
    :param q: x/(1 + x), if it is known.
    """
    q = x / (1 + x) if q is None else q
    return 0.5 * (torch.log1p(x) - q).sum(-1)


def kl_root(a: Tensor, bound: Tensor) -> Tensor:
    """Solve KL(t) = ε for t ∈ (0, 1], with KL(t) of ``kl_along_path``.

    Starts at the root of the model KL(t) ≈ ¼ t²‖a‖² exp(−⁴⁄₃ t Σa³/‖a‖²). Whatever the ratios, 2 steps suffice
    for ε ≤ 1e-3, 3 for 1e-2, 4 for 0.1, 8 for 3.

    :param a: ``(*batch, d)``, float64, each above −1, detached.
    :param bound: ε, float64, positive; broadcasts to the batch.
    :return: t, ``(*batch,)``, without gradient; 1 where KL(1) ≤ ε.
    """
    with torch.no_grad():
        root = bound.sqrt()
        length = torch.linalg.vector_norm(a, dim=-1, keepdim=True).clamp(min=torch.finfo(a.dtype).tiny)
        skew = (a / length).pow(3).sum(-1)
        start = 2 * root / length.squeeze(-1) * torch.exp(4 / 3 * root * skew)
        return find_root(lambda t: kl_along_path(t.unsqueeze(-1) * a), bound, start, pole_limit(a, root))


def find_root(
    function: Function,
    bound: Tensor,
    start: Tensor,
    limit: Tensor,
    rows: Callable[[Tensor], Function] | None = None,
) -> Tensor:
    """Return the t ∈ [0, limit] at which an increasing function reaches its bound; the limit where it does not.

    Newton's method in (log t, log f), in which divergences along a path are nearly linear with slope 2; or a method
    of third order, which takes t·f′ for a power of t. Where that takes more than a few steps, it is kept in a
    bracket, and a step that leaves it goes to the middle of log t. Where the equation is not solved in time, the
    largest t known to obey the bound is returned. Knows nothing of gradients: call it without.

    :param function: Maps t to f(t) and t·f′(t), both of t's shape, and, for the method of third order, to the
        exponent of that power, the slope of log(t·f′) in log t; f(0) = 0.
    :param bound: ε, positive; broadcasts to t.
    :param start: A first guess, positive.
    :param limit: An upper limit of t; broadcasts to t.
    :param rows: Maps indices of t, ``(n,)``, to the function of these alone: once they are few, they are solved apart.
    """
    t = torch.minimum(start, limit)
    branch = can_branch(t)
    lower, upper = torch.zeros_like(t), limit * (1 + 4 * torch.finfo(t.dtype).eps)
    whole, index = t, None
    for step in range(_MAX_STEPS if branch else _UNROLLED_STEPS):
        value, slope, *power = function(t)
        better, moving = _step(t, bound, limit, value, slope, *power)
        left = int(moving.sum()) if branch else -1
        if left == 0:
            return better if index is None else whole.index_copy(0, index, better)
        if not branch or step >= _FREE_STEPS or (power and (step > 0 or not bool((better > 0).all()))):
            outside = value > bound
            lower, upper = torch.where(outside, lower, t), torch.where(outside, t, upper)
            leaves = moving & ~((better > lower) & (better < upper))
            if not branch or bool(leaves.any()):
                better = torch.where(leaves, _middle(lower, upper), better)
        t = better
        if rows is not None and t.numel() >= _MANY and 0 < left <= _FEW * t.numel():
            kept = moving.nonzero().squeeze(-1)
            whole, index = (t, kept) if index is None else (whole.index_copy(0, index, t), index[kept])
            t, bound, limit, lower, upper = (x.expand(t.shape)[kept] for x in (t, bound, limit, lower, upper))
            function = rows(index)
    value, slope, *power = function(t)
    better, moving = _step(t, bound, limit, value, slope, *power)
    t = torch.where(moving, torch.where(value <= bound, t, lower), better)
    return t if index is None else whole.index_copy(0, index, t)


def _step(
    t: Tensor, bound: Tensor, limit: Tensor, value: Tensor, slope: Tensor, power: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return a t nearer to the root, and whether t was still far from it.

    :param power: c, where the solution of f(t) + ∫ s·f′ d log s = ε with s·f′ ∝ sᶜ is taken; f/(t·f′) is Newton's.
    """
    # fmin: 0/0, where the function is zero all the way, means the limit.
    if power is None:
        ratio = bound / value
        better = torch.fmin(t * ratio.pow(value / slope), limit)
        return better, ((ratio - 1).abs() > _NEAR) & (better != t)
    gap = bound - value
    better = t * torch.exp(torch.log1p(power * gap / slope) / power)
    # NaN, where there is no such power, says no more than on which side of t the root is.
    better = torch.where(value > bound, better, torch.fmin(better, limit))
    # What the function can still do, for better or worse, is of the size of the slope over that of the power.
    size = torch.minimum(bound, slope / (1 + power.abs()))
    return better, ~(gap.abs() <= _NEAR_THIRD * size) & (better != t)


def _middle(lower: Tensor, upper: Tensor) -> Tensor:
    """Return the middle of log t, or, while nothing is known to obey the bound, a quarter of what does not."""
    return torch.where(lower > 0, (lower * upper).sqrt(), upper / 4)


def implicit_gradient(t: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """Return t with the gradient that the implicit function theorem gives it: dt = −∂f/f′.

    In either mode, once (see ``with_derivative``).

    :param t: The root, detached.
    :param value: f at fixed t, differentiable in everything else.
    :param slope: t·f′(t), detached; infinite where t is a constant.
    """
    return with_derivative(t, value, _ROOT, -t / slope.clamp(min=torch.finfo(t.dtype).tiny))


_ROOT = Derivative("the root of an equation", torch.mul, torch.mul)


def pole_limit(a: Tensor, root: Tensor) -> Tensor:
    """Return an upper limit of t, at most 1: the most negative aᵢ must not exceed the bound on its own.

    With y = 1/(1 + t·aᵢ) > 1 that is y − 1 − log y ≤ 2ε, which implies y ≤ 1 + 2√ε + 2ε, for e^2√ε is above it.

    :param a: ``(*batch, d)``.
    :param root: √ε; broadcasts to the batch.
    """
    least = 1 / (1 + 2 * root * (1 + root)) - 1
    return least / torch.minimum(a.amin(-1), least)


def reachable_bound(bound: Tensor, rounding: Tensor | float) -> Tensor:
    """Return the bound to aim at, so that the result stays below ``bound`` when it is rounded.

    Near the old policy √KL is a distance: four times what rounding can add to it is kept free, and what the
    root finder may miss.
    """
    return ((1 - 1e-11) * bound.sqrt() - (4 * rounding + 1e-14)).clamp(min=1e-15).square()
