"""What every trust-region projection has in common: the mean's projection, distances, the penalty."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from sb3_trl.projections.gaussian import Gaussian, mahalanobis
from sb3_trl.projections.radial import radial_projection, radial_weight

__all__ = ["Bound", "Projection"]

Bound: TypeAlias = float | Tensor


class Projection(ABC):
    """Projects Gaussians, state by state, onto a trust region around old ones.

    Solves eqs 3 and 4 of Otto et al. (2021): the mean and the covariance nearest to the predicted ones with
    d_mean(π̃, π_old) ≤ ε_μ and d_cov(π̃, π_old) ≤ ε_Σ. A state inside both bounds comes back bit for bit. The
    result is differentiable in the prediction; old policy and bounds are constants.

    To make a projection of your own, subclass it and define ``distance``, ``project_std`` and, for full
    covariances, ``project_tril``.

    :param mean_bound: ε_μ, a positive number or one per state, shape ``(*batch,)``.
    :param cov_bound: ε_Σ, likewise. One per state makes a non-contextual scale contextual.
    :raises ValueError: if a bound is not positive.
    """

    #: Whether an entropy bound belongs to the projection itself instead of to the layer around it.
    constrains_entropy: bool = False

    def __init__(self, mean_bound: Bound = 0.03, cov_bound: Bound = 1e-3) -> None:
        self.mean_bound = check_bound("mean_bound", mean_bound)
        self.cov_bound = check_bound("cov_bound", cov_bound)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mean_bound={self.mean_bound}, cov_bound={self.cov_bound})"

    def __call__(
        self, new: Gaussian, old: Gaussian, mean_bound: Bound | None = None, cov_bound: Bound | None = None
    ) -> Gaussian:
        """Return the projection of ``new`` onto the trust region around ``old``.

        :param new: The prediction.
        :param old: The old policy, of the same kind (diagonal or full).
        :param mean_bound: Used instead of the projection's own, as it changes over training.
        :param cov_bound: Likewise.
        """
        if new.is_diagonal != old.is_diagonal:
            raise ValueError(
                "new and old must be of one kind: both diagonal (std=) or both full (scale_tril=)."
            )
        mean = self.project_mean(new, old.detach(), self.mean_bound if mean_bound is None else mean_bound)
        project_scale = self.project_std if new.is_diagonal else self.project_tril
        scale = project_scale(new, old.detach(), self.cov_bound if cov_bound is None else cov_bound)
        return new.with_scale(scale, mean)

    @abstractmethod
    def distance(self, p: Gaussian, q: Gaussian) -> tuple[Tensor, Tensor]:
        """Return the mean part and the covariance part of d(p, q), differentiable in ``p``.

        Shapes are ``(*batch,)``, without batch dimensions in the second where no scale has any.
        """

    @abstractmethod
    def project_std(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return the projected standard deviations, in the shape of ``new.std``."""

    def project_tril(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return the projected Cholesky factors, in the shape of ``new.scale_tril``."""
        raise NotImplementedError(f"{type(self).__name__} projects diagonal covariances only.")

    def project_mean(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return μ̃ of eqs 5 and 6, the interpolation of the means with squared Mahalanobis distance ≤ ε_μ."""
        if old.std is not None:
            return radial_projection(new.mean, old.mean, old.std, bound)
        rounding = torch.linalg.vector_norm(_absolute_inverse_times(old, old.mean.abs()), dim=-1)
        rounding = torch.finfo(new.mean.dtype).eps * rounding
        t = radial_weight(mahalanobis(new, old), bound, rounding).unsqueeze(-1)
        return torch.where(t == 1, new.mean, old.mean + t * (new.mean - old.mean))

    def is_inside(
        self, p: Gaussian, q: Gaussian, mean_bound: Bound | None = None, cov_bound: Bound | None = None
    ) -> Tensor:
        """Return, for each state, whether ``p`` is inside the trust region around ``q``; shape ``(*batch,)``."""
        mean, cov = self.distance(p, q)
        mean_inside = mean <= (self.mean_bound if mean_bound is None else mean_bound)
        return mean_inside & (cov <= (self.cov_bound if cov_bound is None else cov_bound))

    def penalty(self, new: Gaussian, projected: Gaussian) -> Tensor:
        """Return d(π_θ, stop-gradient(π̃)) of eq. 12 for each state; shape ``(*batch,)``.

        The covariance part counts only where the scale is contextual: a non-contextual one is set to its
        projected value after the update. Zero, with zero gradient, where nothing was projected.
        """
        mean, cov = self.penalty_distance(new, projected.detach())
        return mean + cov if new.is_contextual else mean

    def penalty_distance(self, new: Gaussian, target: Gaussian) -> tuple[Tensor, Tensor]:
        """Return the two parts of the distance that the penalty uses; the projection's own by default."""
        return self.distance(new, target)


def check_bound(name: str, bound: Bound) -> Bound:
    """Return ``bound`` if it is positive and finite, else raise a ``ValueError`` that says so."""
    if not isinstance(bound, (int, float, Tensor)):
        raise TypeError(f"{name}={bound!r} is a {type(bound).__name__}: give a positive number or a tensor.")
    values = torch.as_tensor(bound)
    if not bool((values > 0).all()) or not bool(values.isfinite().all()):
        raise ValueError(
            f"{name}={bound} must be positive and finite; a larger bound is a larger trust region."
        )
    return bound


def project_active_rows(
    new: Gaussian,
    old: Gaussian,
    bound: Bound,
    active: Tensor,
    project: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Project full covariances in float64 where ``active``, and return ``new.scale_tril`` elsewhere.

    On the CPU only the active states are computed. A prediction that is not finite or not positive definite
    is replaced by the old scale (see ``invalid_scale``), and so is a result that is not finite.

    :param active: Which states violate the bound; broadcasts to the batch.
    :param project: Maps (L, L_old, ε, rounding) of n states, float64, to the projected Cholesky factors;
        ``rounding`` is what rounding L_old to the output's dtype changes in its own metric, n numbers.
    """
    shape = torch.broadcast_shapes(active.shape, new.scale.shape[:-2])
    size = (*shape, new.dim, new.dim)
    tril, tril_old = new.scale.expand(size), old.scale.expand(size)
    broken = invalid_scale(new).expand(shape)
    tril = torch.where(broken[..., None, None], tril_old, tril)
    active = active.expand(shape) & ~broken
    epsilon = torch.as_tensor(bound, dtype=torch.float64, device=tril.device).expand(shape)

    def compute(rows: Tensor, rows_old: Tensor, epsilon: Tensor) -> Tensor:
        wide, wide_old = rows.double(), rows_old.double()
        rounding = torch.finfo(rows.dtype).eps * relative_size(wide_old)
        result = project(wide, wide_old, epsilon, rounding).to(rows.dtype)
        return torch.where(result.isfinite().all(-1).all(-1)[..., None, None], result, rows_old)

    if torch.compiler.is_compiling() or tril.device.type != "cpu":
        return torch.where(active[..., None, None], compute(tril, tril_old, epsilon), tril)
    rows = active.reshape(-1).nonzero().squeeze(-1)
    if len(rows) == 0:
        return tril if shape != new.scale.shape[:-2] or bool(broken.any()) else new.scale
    flat, flat_old = tril.reshape(-1, *size[-2:]), tril_old.reshape(-1, *size[-2:])
    projected = compute(flat[rows], flat_old[rows], epsilon.reshape(-1)[rows])
    return flat.index_put((rows,), projected).reshape(size)


def invalid_scale(gaussian: Gaussian) -> Tensor:
    """Return where a scale is not finite or not positive definite; shape of the scale's batch."""
    scale = gaussian.scale.detach()
    if gaussian.is_diagonal:
        return ~(scale.isfinite() & (scale > 0)).all(-1)
    return ~(scale.isfinite().all(-1).all(-1) & (scale.diagonal(dim1=-2, dim2=-1) > 0).all(-1))


def relative_size(tril: Tensor) -> Tensor:
    """‖ |L⁻¹| |L| ‖_F: machine epsilon times this is what rounding L changes in its own metric."""
    eye = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device).expand_as(tril)
    inverse = torch.linalg.solve_triangular(tril, eye, upper=False)
    return torch.linalg.matrix_norm(inverse.abs() @ tril.abs())


def _absolute_inverse_times(gaussian: Gaussian, x: Tensor) -> Tensor:
    """|L⁻¹| x for vectors x, ``(*batch, d)``."""
    eye = torch.eye(gaussian.dim, dtype=x.dtype, device=x.device)
    inverse = torch.linalg.solve_triangular(gaussian.scale, eye.expand_as(gaussian.scale), upper=False)
    return (inverse.abs() @ x.unsqueeze(-1)).squeeze(-1)
