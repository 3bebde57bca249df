"""Projections onto the ball E_s[KL(π ‖ q)] ≤ ε of one divergence, averaged over states.

Akrour et al., *Projections for Approximate Policy Iteration Algorithms*, ICML 2019
(https://proceedings.mlr.press/v97/akrour19a.html). The covariance does not depend on the state, so that

    E[KL(π ‖ q)] = ½ E‖L_q⁻¹(μ − μ_q)‖² + ½ [tr(Σ_q⁻¹Σ) − d − log det(Σ_q⁻¹Σ)],

the means' part and the covariance's, and either part shrinks on the way back to q. Everything is in closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_trl.projections.gaussian import Gaussian, kl_covariance, mahalanobis

__all__ = ["covariance_share", "expected_kl", "interpolate_covariance", "mean_share"]


def expected_kl(p: Gaussian, q: Gaussian) -> tuple[Tensor, Tensor]:
    """Return E[KL(p ‖ q)] in nats as the means' part and the covariance's, float64 scalars.

    :param p: n states, with one covariance for all of them.
    :param q: Likewise.
    :raises ValueError: if a covariance depends on the state.
    """
    if p.is_contextual or q.is_contextual:
        raise ValueError("The expected divergence splits into two parts only if no covariance depends on the state.")
    p, q = p.double(), q.double()
    return 0.5 * mahalanobis(p, q).mean(), kl_covariance(p, q)


def covariance_share(mean_part: Tensor, cov_part: Tensor, bound: float) -> Tensor:
    """Return η = min(1, ε/E[KL]), the share of the covariance's step that leaves the means their part of ε.

    The covariance's part is convex in Σ and zero at Σ_q, so that with Σ̃ = Σ_q + η(Σ − Σ_q) it is at most
    η·``cov_part``, and at least η·``mean_part`` of ε is left.

    :param mean_part: Of E[KL(π ‖ q)] in nats, a scalar.
    :param cov_part: Likewise.
    :param bound: ε, positive.
    """
    return bound / (mean_part + cov_part).clamp(min=bound)


def interpolate_covariance(new: Gaussian, old: Gaussian, share: Tensor) -> Tensor:
    """Return the scale (standard deviations, or the Cholesky factor) of Σ_q + η(Σ − Σ_q), in float64.

    :param new: Holds Σ, one for all states.
    :param old: Holds Σ_q, likewise.
    :param share: η in [0, 1], a scalar; with 1 the scale of ``new`` comes back as it is.
    """
    scale, scale_old = new.scale.double(), old.scale.double()
    if bool(share == 1):
        return scale
    if new.is_diagonal:
        return torch.lerp(scale_old.square(), scale.square(), share).sqrt()
    return torch.linalg.cholesky(torch.lerp(scale_old @ scale_old.mT, scale @ scale.mT, share))


def mean_share(intermediate: Gaussian, new: Gaussian, old: Gaussian, bound: Tensor) -> Tensor:
    """Return the largest t ∈ [0, 1] with ½ E‖L_q⁻¹(μ_i + t(μ − μ_i) − μ_q)‖² ≤ ε, a float64 scalar.

    The means are those of policies that share all layers but the last, which is linear: moving the last layer's
    weights by t moves every mean by t. The left side is a parabola in t; the larger root is taken, written so
    that no digits cancel.

    :param intermediate: Holds μ_i, n states; obeys the bound.
    :param new: Holds μ.
    :param old: Holds μ_q, and L_q, the metric.
    :param bound: ε > 0, what is left for the means, nats; a scalar.
    :raises ValueError: if the intermediate policy is outside.
    """
    old = old.double()
    away = old.whiten(intermediate.mean.double() - old.mean)
    step = old.whiten(new.mean.double() - intermediate.mean.double())
    room = 2 * bound - away.square().sum(-1).mean()
    if not bool(room >= 0):
        raise ValueError(f"The intermediate policy is outside the trust region: {-0.5 * room.item():.3g} nats too far.")
    a, b = step.square().sum(-1).mean(), (step * away).sum(-1).mean()
    root = (b.square() + a * room).sqrt()
    # Where nothing moves all is 0: any t will do.
    tiny = torch.finfo(torch.float64).tiny
    t = torch.where(b > 0, room / (root + b).clamp(min=tiny), (root - b) / a.clamp(min=tiny))
    return torch.where(a == 0, torch.ones_like(t), t.clamp(max=1))
