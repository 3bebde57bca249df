"""The Wasserstein-2 projection: square roots of covariances are interpolated (eqs 8 and 9)."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_trl.projections.gaussian import Gaussian, mahalanobis, wasserstein, whitened_tril
from sb3_trl.projections.projection import Bound, Projection, project_active_rows
from sb3_trl.projections.radial import radial_projection, radial_weight
from sb3_trl.projections.spectral import spd_sqrt

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

    def distance(self, p: Gaussian, q: Gaussian) -> tuple[Tensor, Tensor]:
        """Return the squared Mahalanobis distance and the squared W2 distance of the covariances."""
        if self.commuting and not p.is_diagonal:
            step = torch.linalg.solve_triangular(
                q.scale, spd_sqrt(p.covariance) - spd_sqrt(q.covariance), upper=False
            )
            return mahalanobis(p, q), step.square().sum((-2, -1))
        return wasserstein(p, q)

    def project_std(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return σ̃ = σ_o + t(σ − σ_o)."""
        assert new.std is not None
        assert old.std is not None
        return radial_projection(new.std, old.std, old.std, bound)

    def project_tril(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return the Cholesky factor of Σ̃."""
        if self.commuting:
            active = torch.ones(new.scale.shape[:-2], dtype=torch.bool, device=new.mean.device)
            return project_active_rows(new, old, bound, active, _project_commuting)
        return project_active_rows(new, old, bound, ~_surely_inside(new, old, bound), _project_root)


def _project_root(tril: Tensor, tril_old: Tensor, bound: Tensor, rounding: Tensor) -> Tensor:
    """C̃^½ = I + t(C^½ − I), Σ̃ = L_o C̃ L_oᵀ; the prediction itself where t = 1."""
    whitened = torch.linalg.solve_triangular(tril_old, tril, upper=False)
    eye = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device)
    step = spd_sqrt(whitened @ whitened.mT) - eye
    t = radial_weight(step.square().sum((-2, -1)), bound, rounding)[..., None, None]
    root = eye + t * step
    factor, _ = torch.linalg.cholesky_ex(root @ root)
    return torch.where(t == 1, tril, tril_old @ factor)


def _project_commuting(tril: Tensor, tril_old: Tensor, bound: Tensor, rounding: Tensor) -> Tensor:
    """Σ̃^½ = Σ_o^½ + t(Σ^½ − Σ_o^½), with D² = ‖L_o⁻¹(Σ^½ − Σ_o^½)‖²_F (eq. 9)."""
    root_old = spd_sqrt(tril_old @ tril_old.mT)
    step = spd_sqrt(tril @ tril.mT) - root_old
    metric = torch.linalg.solve_triangular(tril_old, step, upper=False)
    t = radial_weight(metric.square().sum((-2, -1)), bound, rounding)[..., None, None]
    root = root_old + t * step
    factor, _ = torch.linalg.cholesky_ex(root @ root)
    return torch.where(t == 1, tril, factor)


@torch.no_grad()
def _surely_inside(new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
    """Return where ‖C^½ − I‖² ≤ ε follows without eigenvalues, from f = ‖C − I‖_F.

    For every eigenvalue r of C, |√r − 1| = |r − 1|/(1 + √r) and r ≥ 1 − f.
    """
    wide = [Gaussian(g.mean, scale_tril=g.scale.double()) for g in (new, old)]
    whitened = whitened_tril(wide[0], wide[1])
    eye = torch.eye(new.dim, dtype=whitened.dtype, device=whitened.device)
    f = torch.linalg.matrix_norm(whitened @ whitened.mT - eye)
    return (f / (1 + (1 - f).clamp(min=0).sqrt())).square() <= bound
