"""The KL projection: precisions are interpolated until KL(π̃ ‖ π_old) meets its bound (eqs 10 and 11)."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_trl.projections.gaussian import Gaussian, kl
from sb3_trl.projections.projection import Bound, Projection, project_active_rows
from sb3_trl.projections.root import kl_along_path, kl_root, kl_root_differentiable

__all__ = ["KLProjection"]


class KLProjection(Projection):
    """Trust region in KL(π̃ ‖ π_old), nats, split into its mean part and its covariance part.

    The mean part is ½ Mahalanobis², compared with ``mean_bound`` *with* the ½, as in the authors' code.
    The covariance part interpolates precisions, Σ̃⁻¹ = Σ_o⁻¹ + t(Σ⁻¹ − Σ_o⁻¹), where t solves
    KL(t) = ``cov_bound`` (eq. 11 with t = 1/(1 + η)). It is computed in float64 whatever the dtype.
    """

    def distance(self, p: Gaussian, q: Gaussian) -> tuple[Tensor, Tensor]:
        """Return the two parts of KL(p ‖ q) in nats."""
        return kl(p, q)

    def project_mean(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return μ̃ with ½ Mahalanobis² ≤ ε_μ."""
        return super().project_mean(new, old, 2 * bound)

    def project_std(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return σ̃ = σ_o/√(1 + t·a) with a = σ_o²/σ² − 1."""
        assert new.std is not None
        assert old.std is not None
        std, std_old = new.std.double(), old.std.double()
        epsilon = torch.as_tensor(bound, dtype=torch.float64, device=std.device)
        squared = std.square()
        y = (std - std_old) * (std + std_old)
        active = ~(
            0.5 * (y / std_old.square() - torch.log1p(y / std_old.square())).sum(-1).detach() <= epsilon
        )
        a = -y / squared
        reach = reachable_bound(epsilon, torch.finfo(new.std.dtype).eps * new.dim**0.5).expand(active.shape)
        t = kl_root(a.detach().expand(*active.shape, new.dim), reach)
        value, slope = kl_along_path(t, a)
        t = kl_root_differentiable(t, value, torch.where(active, slope, torch.ones_like(slope)))
        projected = std_old * torch.rsqrt(1 + t.unsqueeze(-1) * a)
        return torch.where(active.unsqueeze(-1), projected.to(new.std.dtype), new.std)

    def project_tril(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return the Cholesky factor of Σ̃; only eigen*values* are computed, and no gradient needs them."""
        wide = [Gaussian(g.mean, scale_tril=g.scale.detach().double()) for g in (new, old)]
        active = ~(kl(wide[0], wide[1])[1] <= bound)
        return project_active_rows(new, old, bound, active, _project_precision)


def _project_precision(tril: Tensor, tril_old: Tensor, bound: Tensor, rounding: Tensor) -> Tensor:
    """Interpolate precisions until ½[tr(P⁻¹) − d + log det P] = ε, P = I + t(D − I), D = L_oᵀ Σ⁻¹ L_o.

    D is the predicted precision in the metric of Σ_o. Its *large* eigenvalues decide how far t may go, and
    those an eigensolver finds to full relative precision whatever the condition number. The gradient of t
    follows from ∂KL/∂P = ½(P⁻¹ − P⁻²).

    :param tril: L, ``(n, d, d)``.
    :param tril_old: L_o, ``(n, d, d)``.
    :param bound: ε, ``(n,)``.
    :param rounding: What rounding the result can add to √KL, ``(n,)``.
    :return: The Cholesky factor of Σ̃ = L_o P⁻¹ L_oᵀ.
    """
    whitened = torch.linalg.solve_triangular(tril, tril_old, upper=False)
    precision = whitened.mT @ whitened
    a = torch.linalg.eigvalsh(precision.detach()) - 1
    t = kl_root(a.clamp(min=-1 + torch.finfo(a.dtype).eps), reachable_bound(bound, rounding))
    _, slope = kl_along_path(t, a)
    with torch.no_grad():
        factor = inverse_cholesky(interpolate_precision(t, precision))
        covariance = factor @ factor.mT
        sensitivity = 0.5 * (covariance - covariance @ covariance)
    value = t * (sensitivity * precision).sum((-2, -1))
    t = kl_root_differentiable(t, value, slope)
    return tril_old @ inverse_cholesky(interpolate_precision(t, precision))


def interpolate_precision(t: Tensor, precision: Tensor) -> Tensor:
    """P = t·D + (1 − t)·I."""
    weight = t[..., None, None]
    eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    return weight * precision + (1 - weight) * eye


def inverse_cholesky(precision: Tensor) -> Tensor:
    """Return the lower-triangular V with V Vᵀ = P⁻¹, from the Cholesky factor of P read backwards."""
    reversed_factor, _ = torch.linalg.cholesky_ex(precision.flip(-2, -1))
    upper = reversed_factor.flip(-2, -1)
    eye = torch.eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    return torch.linalg.solve_triangular(upper.mT, eye.expand_as(precision), upper=False)


def reachable_bound(bound: Tensor, rounding: Tensor | float) -> Tensor:
    """Return the bound to aim at, so that the result stays below ``bound`` when it is rounded.

    Near the old policy √KL is a distance: twice what rounding can add to it is kept free.
    """
    return (bound.sqrt() - 2 * rounding).clamp(min=1e-15).square()
