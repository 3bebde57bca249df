"""The Wasserstein-2 projection: square roots of covariances are interpolated (eqs 8 and 9)."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_trl.projections.distribution import Bound
from sb3_trl.projections.gaussian import Gaussian, wasserstein_covariance
from sb3_trl.projections.matrices import identity_like
from sb3_trl.projections.projection import Projection, project_active_rows, whitened_step
from sb3_trl.projections.radial import radial_projection, radial_weight
from sb3_trl.projections.spectral import spd_sqrt, sqrt_difference

__all__ = ["WassersteinProjection"]


class WassersteinProjection(Projection):
    """Trust region in the Wasserstein-2 distance, squared, measured in the metric of Σ_old.

    Diagonal covariances: standard deviations are interpolated, distance ‖σ/σ_o − 1‖² (eq. 9). Full ones: in
    that metric Σ_o is the identity, which commutes with every matrix, so interpolating the square root of
    C = L_o⁻¹ Σ L_o⁻ᵀ towards I is the exact projection, with no assumption.

    :param mean_bound: ε_μ for the squared Mahalanobis distance.
    :param cov_bound: ε_Σ for the covariance part.
    :param commuting: For full covariances, use the paper's eq. 9 as it stands, which interpolates Σ^½ and
        Σ_o^½ themselves and is a projection only where the two commute. Distances are measured likewise.
    """

    def __init__(self, mean_bound: Bound = 0.03, cov_bound: Bound = 1e-3, commuting: bool = False) -> None:
        super().__init__(mean_bound, cov_bound)
        self.commuting = commuting

    def cov_distance(self, p: Gaussian, q: Gaussian) -> Tensor:
        """Return the squared W2 distance of the covariances in the metric of Σ_q."""
        if self.commuting and not p.is_diagonal:
            step = spd_sqrt(p.covariance) - spd_sqrt(q.covariance)
            return torch.linalg.solve_triangular(q.scale, step, upper=False).square().sum((-2, -1))
        return wasserstein_covariance(p, q)

    def project_std(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return σ̃ = σ_o + t(σ − σ_o)."""
        rounding = torch.finfo(old.scale.dtype).eps * new.dim**0.5
        return radial_projection(new.scale, old.scale, old.scale, bound, rounding)

    def project_tril(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return the Cholesky factor of Σ̃."""
        if self.commuting:
            active = torch.ones((), dtype=torch.bool, device=new.scale.device)
            return project_active_rows(new, old, bound, active, _project_commuting)
        return project_active_rows(new, old, bound, ~_surely_inside(new, old, bound), _project_root)


def _project_root(tril: Tensor, tril_old: Tensor, bound: Tensor, rounding: Tensor) -> Tensor:
    """C̃^½ = I + t(C^½ − I), Σ̃ = L_o C̃ L_oᵀ; the prediction itself where it is inside."""
    e = torch.linalg.solve_triangular(tril_old, tril - tril_old, upper=False)
    step = sqrt_difference(_covariance_difference(e))
    t, inside = radial_weight(torch.linalg.matrix_norm(step), bound, 4 * rounding)
    root = identity_like(tril) + t[..., None, None] * step
    factor, _ = torch.linalg.cholesky_ex(root @ root)
    return torch.where(inside[..., None, None], tril, tril_old @ factor)


def _project_commuting(tril: Tensor, tril_old: Tensor, bound: Tensor, rounding: Tensor) -> Tensor:
    """Σ̃^½ = Σ_o^½ + t(Σ^½ − Σ_o^½), with D² = ‖L_o⁻¹(Σ^½ − Σ_o^½)‖²_F (eq. 9)."""
    root_old = spd_sqrt(tril_old @ tril_old.mT)
    step = spd_sqrt(tril @ tril.mT) - root_old
    distance = torch.linalg.matrix_norm(torch.linalg.solve_triangular(tril_old, step, upper=False))
    t, inside = radial_weight(distance, bound, 4 * rounding)
    root = root_old + t[..., None, None] * step
    factor, _ = torch.linalg.cholesky_ex(root @ root)
    return torch.where(inside[..., None, None], tril, factor)


def _surely_inside(new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
    """Return where ‖C^½ − I‖² ≤ ε follows without eigenvalues, from f = ‖C − I‖_F.

    For every eigenvalue r of C, |√r − 1| = |r − 1|/(1 + √r) and r ≥ 1 − f.
    """
    f = torch.linalg.matrix_norm(_covariance_difference(whitened_step(new, old)))
    return (f / (1 + (1 - f).clamp(min=0).sqrt())).square() <= bound


def _covariance_difference(e: Tensor) -> Tensor:
    """C − I = E + Eᵀ + EEᵀ with C = L_o⁻¹ Σ L_o⁻ᵀ and E = L_o⁻¹(L − L_o), without losing digits near I."""
    return e + e.mT + e @ e.mT
