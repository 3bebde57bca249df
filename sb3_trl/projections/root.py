"""The scalar equation behind the KL projections: how far may natural parameters move?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sb3_trl.projections.derivatives import Derivative, with_derivative
from sb3_trl.projections.tracing import can_branch

__all__ = ["find_root", "implicit_gradient", "kl_along_path", "kl_at", "kl_root", "pole_limit"]

#: A Newton step from nearer to the bound than this, relatively, is the last: it leaves about the square of it.
_NEAR = 2e-7
_MAX_STEPS = 50
#: Steps before a bracket is kept: up to ε of about 0.3 they are enough.
_FREE_STEPS = 4
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
    function: Callable[[Tensor], tuple[Tensor, Tensor]], bound: Tensor, start: Tensor, limit: Tensor
) -> Tensor:
    """Return the t ∈ [0, limit] at which an increasing function reaches its bound; the limit where it does not.

    Newton's method in (log t, log f), in which divergences along a path are nearly linear with slope 2. Where
    that takes more than a few steps, it is kept in a bracket, and a step that leaves it goes to the middle of
    log t. f(t) ≤ ε holds within 1e-9, whatever happens: where the equation is not solved in time, the largest
    t known to obey the bound is returned. Knows nothing of gradients: call it without.

    :param function: Maps t to f(t) and t·f′(t), both of t's shape; f(0) = 0.
    :param bound: ε, positive; broadcasts to t.
    :param start: A first guess, positive.
    :param limit: An upper limit of t; broadcasts to t.
    """
    t = torch.minimum(start, limit)
    branch = can_branch(t)
    lower, upper = torch.zeros_like(t), limit * (1 + 4 * torch.finfo(t.dtype).eps)
    for step in range(_MAX_STEPS if branch else _UNROLLED_STEPS):
        value, slope = function(t)
        # fmin: 0/0, where the function is zero all the way, means the limit.
        ratio = bound / value
        newton = torch.fmin(t * ratio.pow(value / slope), limit)
        moving = ((ratio - 1).abs() > _NEAR) & (newton != t)
        if branch and not bool(moving.any()):
            return newton
        if step >= _FREE_STEPS or not branch:
            outside = value > bound
            lower, upper = torch.where(outside, lower, t), torch.where(outside, t, upper)
            leaves = moving & ~((newton > lower) & (newton < upper))
            newton = torch.where(leaves, (lower * upper).sqrt(), newton)
        t = newton
    return torch.where(function(t)[0] <= bound * (1 + 1e-9), t, lower)


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
