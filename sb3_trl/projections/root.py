"""The scalar equation behind the KL projections: how far may natural parameters move?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["find_root", "kl_along_path", "kl_root", "kl_root_differentiable", "upper_limit"]

_TOLERANCE = 1e-12
_MAX_STEPS = 40


def kl_along_path(t: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(t) = ½ Σ φ(t·aᵢ) with φ(x) = log(1 + x) − x/(1 + x), and t·KL′(t) = ½ Σ (x/(1 + x))².

    The covariance part of KL(π̃ ‖ π_old) when precisions are interpolated, Σ̃⁻¹ = Σ_o⁻¹ + t(Σ⁻¹ − Σ_o⁻¹)
    (eq. 11), and a + 1 are the eigenvalues of Σ_o Σ⁻¹.

    :param t: ``(*batch,)``.
    :param a: ``(*batch, d)``, each above −1.
    """
    x = t.unsqueeze(-1) * a
    q = x / (1 + x)
    return 0.5 * (torch.log1p(x) - q).sum(-1), 0.5 * q.square().sum(-1)


def kl_root(a: Tensor, bound: Tensor) -> Tensor:
    """Solve KL(t) = ε for t ∈ (0, 1], with KL(t) of ``kl_along_path``.

    Starts at the root of the quadratic model, KL(t) ≈ ¼ t²‖a‖²: 2 steps suffice for ε ≤ 1e-4, 3 for 1e-2,
    10 for 1, whatever the ratios.

    :param a: ``(*batch, d)``, float64, each above −1.
    :param bound: ε, ``(*batch,)``, float64, positive.
    :return: t, ``(*batch,)``, without gradient; 1 where KL(1) ≤ ε.
    """
    with torch.no_grad():
        tiny = torch.finfo(a.dtype).tiny
        start = 2 * bound.sqrt() / torch.linalg.vector_norm(a, dim=-1).clamp(min=tiny)
        return find_root(lambda t: kl_along_path(t, a), bound, torch.minimum(start, upper_limit(a, bound)))


def find_root(function: Callable[[Tensor], tuple[Tensor, Tensor]], bound: Tensor, start: Tensor) -> Tensor:
    """Return the t ∈ [0, 1] at which an increasing function reaches its bound; 1 where it never does.

    Newton's method in (log t, log f), in which divergences along a path are nearly linear with slope 2, kept
    in a bracket; bisection of log t where a step leaves it. Where the equation is not solved to 1e-12 in
    time, the largest t visited at which the bound holds is returned: the bound holds in any case. Knows
    nothing of gradients: call it without.

    :param function: Maps t to f(t) and t·f′(t), both of t's shape.
    :param bound: ε with f(0) ≤ ε, positive.
    :param start: A first guess; numbers above 1 count as 1.
    """
    tiny = torch.finfo(start.dtype).tiny
    one = torch.ones_like(start)
    lower = (function(one)[0] <= bound).to(start.dtype)
    upper = one
    t = torch.maximum(lower, start.clamp(min=tiny, max=1))
    for _ in range(_MAX_STEPS):
        value, slope = function(t)
        ratio = value / bound
        lower = torch.where(value <= bound, torch.maximum(lower, t), lower)
        upper = torch.where(value > bound, torch.minimum(upper, t), upper)
        solved = ((ratio - 1).abs() < _TOLERANCE) | (lower >= upper)
        if not torch.compiler.is_compiling() and t.device.type == "cpu" and bool(solved.all()):
            break
        newton = t * ratio.clamp(min=tiny).pow(-value / slope.clamp(min=tiny))
        bisection = torch.where(lower > 0, (lower * upper).sqrt(), upper / 8)
        in_bracket = (newton >= lower) & (newton <= upper)
        t = torch.where(solved, t, torch.where(in_bracket, newton, bisection))
    return torch.where(function(t)[0] <= bound * (1 + 2 * _TOLERANCE), t, lower)


def kl_root_differentiable(t: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """Return t with the gradient that the implicit function theorem gives it: dt = −∂KL/KL′.

    One Newton step, t − (KL(t, a) − sg KL)/sg KL′, has the value t and that gradient.

    :param t: The root, without gradient.
    :param value: KL(t, a), differentiable in a at fixed t.
    :param slope: t·KL′(t).
    """
    tiny = torch.finfo(t.dtype).tiny
    return t - t * (value - value.detach()) / slope.detach().clamp(min=tiny)


def upper_limit(a: Tensor, bound: Tensor) -> Tensor:
    """Return an upper limit of t: the most negative aᵢ alone must not exceed the bound on its own.

    With y = 1/(1 + t·aᵢ) > 1 the condition is y − 1 − log y ≤ 2ε, which implies y ≤ 1 + 2ε + √(4ε + 4ε²).
    """
    y = 1 + 2 * bound + torch.sqrt(4 * bound + 4 * bound.square())
    most_negative = a.amin(-1)
    limit = (1 / y - 1) / most_negative.clamp(max=-torch.finfo(a.dtype).tiny)
    return torch.where(most_negative < 0, limit, torch.ones_like(limit)).clamp(max=1)
