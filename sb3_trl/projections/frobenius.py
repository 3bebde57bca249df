"""The Frobenius projection: covariances are interpolated (eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_trl.projections.distribution import Bound
from sb3_trl.projections.gaussian import Gaussian, frobenius_covariance
from sb3_trl.projections.projection import Projection, project_active_rows
from sb3_trl.projections.radial import column, length, radial_weight

__all__ = ["FrobeniusProjection"]


class FrobeniusProjection(Projection):
    """Trust region in ‖Σ − Σ_o‖²_F, the squared Frobenius norm, and the squared Mahalanobis distance of the means.

    Σ̃ = Σ_o + t(Σ − Σ_o) with t = 1/√max(‖Σ − Σ_o‖²_F/ε_Σ, 1).
    """

    def cov_distance(self, p: Gaussian, q: Gaussian) -> Tensor:
        """Return ‖Σ_p − Σ_q‖²_F."""
        return frobenius_covariance(p, q)

    def cov_penalty(self, new: Gaussian, target: Gaussian) -> Tensor:
        """Return the squared difference of the *scales* (σ, or Cholesky factors).

        That of the covariances grows with the fourth power of σ and lets contextual scales explode.
        """
        return (new.scale - target.scale).square().sum((-1,) if new.is_diagonal else (-2, -1))

    def project_std(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return the square root of σ_o² + t(σ² − σ_o²)."""
        info = torch.finfo(new.scale.dtype)
        variance_old = old.scale.square()
        step = (new.scale - old.scale) * (new.scale + old.scale)
        distance = length(step, keepdim=True)
        # Three roundings: of the sum, and, doubled by the square, of the root.
        rounding = 3 * info.eps * torch.linalg.vector_norm(variance_old, dim=-1, keepdim=True)
        t, inside = radial_weight(distance, column(bound), rounding)
        # Only where the prediction is inside can rounding bring the sum to zero.
        variance = torch.addcmul(variance_old, t, step).clamp(min=info.tiny)
        return torch.where(inside, new.scale, variance.sqrt())

    def project_tril(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return the Cholesky factor of Σ̃."""
        outside = ~(frobenius_covariance(new.detach().double(), old) <= bound)
        unit = torch.finfo(new.scale.dtype).eps

        def project(tril: Tensor, tril_old: Tensor, epsilon: Tensor, _: Tensor) -> Tensor:
            covariance_old = tril_old @ tril_old.mT
            step = tril @ tril.mT - covariance_old
            # Rounding L̃ changes Σ̃ by up to eps·|L̃||L̃|ᵀ, whose norm is at most tr Σ̃.
            trace = tril_old.square().sum((-2, -1)) + (new.dim * epsilon).sqrt()
            t, _ = radial_weight(length(step, (-2, -1)), epsilon, 2 * unit * trace)
            factor, _ = torch.linalg.cholesky_ex(covariance_old + t[..., None, None] * step)
            return factor

        return project_active_rows(new, old, bound, outside, project)
