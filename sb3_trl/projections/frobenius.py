"""The Frobenius projection: covariances are interpolated (eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_trl.projections.gaussian import Gaussian, frobenius, mahalanobis
from sb3_trl.projections.projection import Bound, Projection, project_active_rows
from sb3_trl.projections.radial import radial_weight

__all__ = ["FrobeniusProjection"]


class FrobeniusProjection(Projection):
    """Trust region in the squared Frobenius norm of the covariances' difference, and Mahalanobis² of the means.

    Σ̃ = Σ_o + t(Σ − Σ_o) with t = 1/√max(‖Σ − Σ_o‖²_F/ε_Σ, 1).
    """

    def distance(self, p: Gaussian, q: Gaussian) -> tuple[Tensor, Tensor]:
        """Return the squared Mahalanobis distance of the means and ‖Σ_p − Σ_q‖²_F."""
        return frobenius(p, q)

    def penalty_distance(self, new: Gaussian, target: Gaussian) -> tuple[Tensor, Tensor]:
        """Return Mahalanobis² and the squared difference of the *scales* (σ, or Cholesky factors).

        That of the covariances grows with the fourth power of σ and lets contextual scales explode.
        """
        dims = (-1,) if new.is_diagonal else (-2, -1)
        return mahalanobis(new, target), (new.scale - target.scale).square().sum(dims)

    def project_std(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return the square root of σ_o² + t(σ² − σ_o²)."""
        assert new.std is not None
        assert old.std is not None
        step = (new.std - old.std) * (new.std + old.std)
        variance_old = old.std.square()
        # Three roundings: of the sum, and, doubled by the square, of the root.
        rounding = 3 * torch.finfo(step.dtype).eps * torch.linalg.vector_norm(variance_old, dim=-1)
        t = radial_weight(step.square().sum(-1), bound, rounding).unsqueeze(-1)
        return torch.where(t == 1, new.std, (variance_old + t * step).sqrt())

    def project_tril(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return the Cholesky factor of Σ̃."""
        wide = [Gaussian(g.mean, scale_tril=g.scale.detach().double()) for g in (new, old)]
        active = ~(frobenius(wide[0], wide[1])[1] <= bound)

        def project(tril: Tensor, tril_old: Tensor, epsilon: Tensor, _: Tensor) -> Tensor:
            covariance_old = tril_old @ tril_old.mT
            step = tril @ tril.mT - covariance_old
            # Rounding L̃ changes Σ̃ by up to eps·|L̃||L̃|ᵀ.
            size = torch.linalg.matrix_norm(tril_old.abs() @ tril_old.abs().mT)
            rounding = 2 * torch.finfo(new.scale.dtype).eps * size
            t = radial_weight(step.square().sum((-2, -1)), epsilon, rounding)[..., None, None]
            factor, _ = torch.linalg.cholesky_ex(covariance_old + t * step)
            return factor

        return project_active_rows(new, old, bound, active, project)
