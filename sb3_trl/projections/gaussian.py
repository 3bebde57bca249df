"""Gaussian action distributions and the distances between them that define trust regions.

Shapes: ``mean`` is ``(*batch, d)``; ``std`` is ``(*batch, d)``, or ``(d,)`` where it does not depend on the
state; ``scale_tril`` is ``(*batch, d, d)`` or ``(d, d)``, lower-triangular with a positive diagonal. Every
distance comes as a pair: the part that depends on the means, shape ``(*batch,)``, and the part that depends
on the covariances, whose shape is that of the scales without their event dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sb3_trl.projections.spectral import spd_sqrt

__all__ = ["Gaussian", "frobenius", "kl", "mahalanobis", "wasserstein"]

_LOG_2PI = math.log(2 * math.pi)


class Gaussian:
    """A batch of Gaussians N(mean, Σ) with diagonal or full covariance.

    Give exactly one of ``std`` (diagonal, Σ = diag(std²)) and ``scale_tril`` (full, Σ = LLᵀ).

    :param mean: ``(*batch, d)``.
    :param std: Standard deviations, ``(*batch, d)`` or ``(d,)``, positive.
    :param scale_tril: Cholesky factors, ``(*batch, d, d)`` or ``(d, d)``.
    :raises ValueError: if not exactly one scale is given or the shapes do not fit.
    """

    __slots__ = ("_tril", "mean", "std")

    def __init__(self, mean: Tensor, std: Tensor | None = None, scale_tril: Tensor | None = None) -> None:
        if (std is None) == (scale_tril is None):
            raise ValueError(
                "Gaussian takes exactly one of std= (diagonal) and scale_tril= (full covariance)."
            )
        dim = mean.shape[-1]
        if std is not None and std.shape[-1:] != (dim,):
            raise ValueError(f"std has shape {tuple(std.shape)}, but the mean has {dim} dimensions.")
        if scale_tril is not None and scale_tril.shape[-2:] != (dim, dim):
            raise ValueError(f"scale_tril has shape {tuple(scale_tril.shape)}, expected (..., {dim}, {dim}).")
        self.mean = mean
        self.std = std
        self._tril = scale_tril

    def __repr__(self) -> str:
        kind, scale = ("std", self.std) if self.std is not None else ("scale_tril", self._tril)
        assert scale is not None
        return f"Gaussian(mean: {tuple(self.mean.shape)}, {kind}: {tuple(scale.shape)}, {self.mean.dtype})"

    @property
    def dim(self) -> int:
        """Number of dimensions d of one draw."""
        return self.mean.shape[-1]

    @property
    def is_diagonal(self) -> bool:
        """Whether the covariance is stored as standard deviations."""
        return self.std is not None

    @property
    def scale(self) -> Tensor:
        """The scale as it is stored: ``std`` if diagonal, ``scale_tril`` if full."""
        if self.std is not None:
            return self.std
        assert self._tril is not None
        return self._tril

    @property
    def scale_tril(self) -> Tensor:
        """The lower-triangular L with Σ = LLᵀ."""
        return torch.diag_embed(self.std) if self.std is not None else self.scale

    @property
    def covariance(self) -> Tensor:
        """The covariance matrix Σ."""
        return torch.diag_embed(self.std.square()) if self.std is not None else self.scale @ self.scale.mT

    @property
    def is_contextual(self) -> bool:
        """Whether the covariance has batch dimensions of its own."""
        return self.scale.dim() > (1 if self.is_diagonal else 2)

    @property
    def log_det_scale(self) -> Tensor:
        """½ log det Σ, in the shape of the scale's batch."""
        diagonal = self.std if self.std is not None else self.scale.diagonal(dim1=-2, dim2=-1)
        return diagonal.log().sum(-1)

    def with_scale(self, scale: Tensor, mean: Tensor | None = None) -> Gaussian:
        """Return the Gaussian with another scale (of the same kind) and, if given, another mean."""
        mean = self.mean if mean is None else mean
        return Gaussian(mean, std=scale) if self.is_diagonal else Gaussian(mean, scale_tril=scale)

    def detach(self) -> Gaussian:
        """Return the same Gaussian without its gradient history."""
        return self.with_scale(self.scale.detach(), self.mean.detach())

    def __getitem__(self, index: Tensor | slice) -> Gaussian:
        """Return the Gaussians at ``index`` of the first batch dimension."""
        return self.with_scale(self.scale[index] if self.is_contextual else self.scale, self.mean[index])

    def whiten(self, x: Tensor) -> Tensor:
        """Return L⁻¹x for vectors ``x``, ``(*batch, d)``."""
        if self.std is not None:
            return x / self.std
        if self.scale.dim() == 2:
            rows = x.reshape(-1, self.dim)
            return torch.linalg.solve_triangular(self.scale.mT, rows, upper=True, left=False).reshape(x.shape)
        return torch.linalg.solve_triangular(self.scale, x.unsqueeze(-1), upper=False).squeeze(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of ``x`` in nats; shape ``(*batch,)``."""
        squared = self.whiten(x - self.mean).square().sum(-1)
        return -0.5 * squared - (self.log_det_scale + 0.5 * self.dim * _LOG_2PI)

    def entropy(self) -> Tensor:
        """H = ½ d log(2πe) + ½ log det Σ in nats; shape ``(*batch,)``."""
        entropy = self.log_det_scale + 0.5 * self.dim * (1 + _LOG_2PI)
        return entropy.expand(self.mean.shape[:-1])

    def sample(self) -> Tensor:
        """Draw ``mean + L·noise``, differentiable in mean and scale; shape ``(*batch, d)``."""
        noise = torch.randn_like(self.mean)
        if self.std is not None:
            return self.mean + self.std * noise
        return self.mean + (self.scale @ noise.unsqueeze(-1)).squeeze(-1)


def mahalanobis(p: Gaussian, q: Gaussian) -> Tensor:
    """(μ_p − μ_q)ᵀ Σ_q⁻¹ (μ_p − μ_q), the *squared* Mahalanobis distance of the means; shape ``(*batch,)``."""
    return q.whiten(p.mean - q.mean).square().sum(-1)


def kl(p: Gaussian, q: Gaussian) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) in nats, split: ½ Mahalanobis², and ½ [tr(Σ_q⁻¹Σ_p) − d − log det(Σ_q⁻¹Σ_p)].

    Written in r − 1 (diagonal) so that nearly equal variances lose no digits. Zero for p = q.
    """
    _check_kinds(p, q)
    if p.std is not None and q.std is not None:
        y = (p.std - q.std) * (p.std + q.std) / q.std.square()
        cov = 0.5 * (y - torch.log1p(y)).sum(-1)
    else:
        whitened = whitened_tril(p, q)
        log_det = whitened.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        cov = 0.5 * (whitened.square().sum((-2, -1)) - p.dim) - log_det
    return 0.5 * mahalanobis(p, q), cov


def wasserstein(p: Gaussian, q: Gaussian) -> tuple[Tensor, Tensor]:
    """W2² in the metric of Σ_q, split: Mahalanobis², and ‖C^½ − I‖²_F with C = L_q⁻¹ Σ_p L_q⁻ᵀ.

    The second part equals tr(Σ_q⁻¹Σ_p + I − 2 Σ_q⁻¹(Σ_q^½ Σ_p Σ_q^½)^½) of section 3 of Otto et al.
    (2021) where the matrices commute, and is ‖σ_p/σ_q − 1‖² for diagonal covariances.
    """
    _check_kinds(p, q)
    if p.std is not None and q.std is not None:
        cov = ((p.std - q.std) / q.std).square().sum(-1)
    else:
        whitened = whitened_tril(p, q)
        root = spd_sqrt(whitened @ whitened.mT)
        cov = (root - torch.eye(p.dim, dtype=root.dtype, device=root.device)).square().sum((-2, -1))
    return mahalanobis(p, q), cov


def frobenius(p: Gaussian, q: Gaussian) -> tuple[Tensor, Tensor]:
    """Frobenius distance of section 3 of Otto et al. (2021), split: Mahalanobis², and ‖Σ_p − Σ_q‖²_F."""
    _check_kinds(p, q)
    if p.std is not None and q.std is not None:
        cov = ((p.std - q.std) * (p.std + q.std)).square().sum(-1)
    else:
        # Σ_p − Σ_q = ½[(L_p − L_q)(L_p + L_q)ᵀ + transpose], which keeps the digits of a small difference.
        half = (p.scale - q.scale) @ (p.scale + q.scale).mT
        cov = (0.5 * (half + half.mT)).square().sum((-2, -1))
    return mahalanobis(p, q), cov


def whitened_tril(p: Gaussian, q: Gaussian) -> Tensor:
    """L_q⁻¹ L_p, the Cholesky factor of Σ_p in the metric of Σ_q."""
    return torch.linalg.solve_triangular(q.scale, p.scale, upper=False)


def _check_kinds(p: Gaussian, q: Gaussian) -> None:
    if p.is_diagonal != q.is_diagonal:
        raise ValueError(
            "One Gaussian is diagonal and the other full: build both with std= or both with scale_tril=."
        )
