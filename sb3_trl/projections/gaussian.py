"""Gaussian action distributions and the distances between them that define trust regions.

Shapes: ``mean`` is ``(*batch, d)``; ``std`` is ``(*batch, d)``, or ``(d,)`` where it does not depend on the
state; ``scale_tril`` is ``(*batch, d, d)`` or ``(d, d)``, lower-triangular with a positive diagonal. Every
distance comes as a pair: the part that depends on the means, shape ``(*batch,)``, and the part that depends
on the covariances, whose shape is that of the scales without their event dimensions.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from sb3_trl.projections.distribution import Bound, Distribution, Rule
from sb3_trl.projections.matrices import inverse_tril, matvec
from sb3_trl.projections.spectral import sqrt_difference
from sb3_trl.projections.tracing import is_plain

__all__ = [
    "Gaussian",
    "frobenius",
    "frobenius_covariance",
    "kl",
    "kl_covariance",
    "kl_of_difference",
    "mahalanobis",
    "wasserstein",
    "wasserstein_covariance",
    "whitened_difference",
]

_LOG_2PI = math.log(2 * math.pi)


class Gaussian(Distribution):
    """A batch of Gaussians N(mean, Σ) with diagonal or full covariance.

    Give exactly one of ``std`` (diagonal, Σ = diag(std²)) and ``scale_tril`` (full, Σ = LLᵀ).

    :param mean: ``(*batch, d)``.
    :param std: Standard deviations, ``(*batch, d)`` or ``(d,)``, positive.
    :param scale_tril: Cholesky factors, ``(*batch, d, d)`` or ``(d, d)``.
    :raises ValueError: if not exactly one scale is given, or its shape does not fit the mean's.
    """

    __slots__ = ("_inverse", "_tril", "mean", "std")
    bound_names: ClassVar[tuple[str, ...]] = ("mean_bound", "cov_bound")

    def __init__(self, mean: Tensor, std: Tensor | None = None, scale_tril: Tensor | None = None) -> None:
        if (std is None) == (scale_tril is None):
            raise ValueError("Gaussian takes exactly one of std= (diagonal) and scale_tril= (full covariance).")
        if std is not None:
            _check_shapes(mean, "std", std, 1)
        elif scale_tril is not None:
            _check_shapes(mean, "scale_tril", scale_tril, 2)
        self.mean = mean
        self.std = std
        self._tril = scale_tril
        self._inverse: Tensor | None = None

    def __repr__(self) -> str:
        kind, scale = ("std", self.std) if self.std is not None else ("scale_tril", self._tril)
        assert scale is not None
        return f"Gaussian(mean: {tuple(self.mean.shape)}, {kind}: {tuple(scale.shape)}, {self.mean.dtype})"

    @property
    def dim(self) -> int:
        """Number of dimensions d of one draw."""
        return self.mean.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """The dimensions of the batch."""
        return self.mean.shape[:-1]

    @property
    def tensor(self) -> Tensor:
        """The mean."""
        return self.mean

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
    def inverse_tril(self) -> Tensor:
        """L⁻¹ in float64, without gradient; computed once."""
        if self._inverse is None:
            self._inverse = inverse_tril(self.scale_tril.detach().double())
        return self._inverse

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

    def scaled(self, factor: Tensor) -> Gaussian:
        """Return the Gaussian with its scale times ``factor``, a scalar or one number per state."""
        factor = factor.to(self.scale.dtype)
        return self.with_scale(self.scale * (factor[..., None] if self.is_diagonal else factor[..., None, None]))

    def double(self) -> Gaussian:
        """Return the Gaussian in float64."""
        return self.with_scale(self.scale.double(), self.mean.double())

    def detach(self) -> Gaussian:
        """Return the same Gaussian as a constant, without derivatives of either mode; itself if it has none."""
        if is_plain() and not self.mean.requires_grad and not self.scale.requires_grad:
            return self
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

    def unwhiten(self, x: Tensor) -> Tensor:
        """Return Lx for vectors ``x``, ``(*batch, d)``."""
        if self.std is not None:
            return self.std * x
        return matvec(self.scale, x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of ``x`` in nats; shape ``(*batch,)``."""
        squared = self.whiten(x - self.mean).square().sum(-1)
        return torch.sub(-0.5 * self.dim * _LOG_2PI - self.log_det_scale, squared, alpha=0.5)

    @property
    def scale_entropy(self) -> Tensor:
        """H = ½ d log(2πe) + ½ log det Σ in nats, in the shape of the scale's batch."""
        return self.log_det_scale + 0.5 * self.dim * (1 + _LOG_2PI)

    def entropy(self) -> Tensor:
        """H = ½ d log(2πe) + ½ log det Σ in nats; shape ``(*batch,)``."""
        entropy = self.scale_entropy
        return entropy.expand(torch.broadcast_shapes(self.mean.shape[:-1], entropy.shape))

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self ‖ other) in nats, the sum of both parts of ``gaussian.kl``; shape ``(*batch,)``."""
        mean, cov = kl(self, other)
        return mean + cov

    def sample(self) -> Tensor:
        """Draw ``mean + L·noise``, differentiable in mean and scale; shape ``(*batch, d)``."""
        return self.mean + self.unwhiten(torch.randn_like(self.mean))

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def with_entropy(self, bound: Bound, equality: bool = False) -> Gaussian:
        """Return the Gaussian with its scale times exp((β − H)/d) where H < β (see ``control_entropy``)."""
        shortfall = bound - self.scale_entropy
        if not equality:
            shortfall = shortfall.clamp(min=0)
        return self.scaled(torch.exp(shortfall / self.dim))

    # --- what a projection asks ---

    def check(self, old: Distribution) -> None:
        """Raise a ``ValueError`` unless both are Gaussians of one kind and dimension."""
        if not isinstance(old, Gaussian):
            raise ValueError(f"new is a Gaussian and old a {type(old).__name__}: they must be of one kind.")
        if self.is_diagonal != old.is_diagonal:
            kinds = f"new is {self._kind} and old is {old._kind}"
            raise ValueError(f"{kinds}: build both with std= or both with scale_tril=.")
        if self.dim != old.dim:
            raise ValueError(f"new has {self.dim} dimensions and old has {old.dim}: they must be equal.")

    def check_projection(self, projection: Rule) -> None:
        """Every projection is for Gaussians."""

    @property
    def _kind(self) -> str:
        return "diagonal (std)" if self.is_diagonal else "full (scale_tril)"

    def projected_by(self, projection: Rule, old: Gaussian, *bounds: Bound) -> Gaussian:
        """Return the projection into the region around ``old``."""
        return projection.project_gaussian(self, old, *bounds)

    def distance_by(self, projection: Rule, other: Gaussian) -> tuple[Tensor, Tensor]:
        """Return the mean part and the covariance part of the projection's d(self, other)."""
        return projection.mean_distance(self, other), projection.cov_distance(self, other)

    def penalty_by(self, projection: Rule, target: Gaussian) -> Tensor:
        """Return the projection's penalty for being away from ``target``; shape ``(*batch,)``."""
        return projection.gaussian_penalty(self, target)


def mahalanobis(p: Gaussian, q: Gaussian) -> Tensor:
    """(μ_p − μ_q)ᵀ Σ_q⁻¹ (μ_p − μ_q), the *squared* Mahalanobis distance of the means; ``(*batch,)``."""
    return q.whiten(p.mean - q.mean).square().sum(-1)


def kl(p: Gaussian, q: Gaussian) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) in nats, split into ½ Mahalanobis² and ``kl_covariance``; zero for p = q."""
    return 0.5 * mahalanobis(p, q), kl_covariance(p, q)


def wasserstein(p: Gaussian, q: Gaussian) -> tuple[Tensor, Tensor]:
    """W2² in the metric of Σ_q, split into Mahalanobis² and ``wasserstein_covariance``."""
    return mahalanobis(p, q), wasserstein_covariance(p, q)


def frobenius(p: Gaussian, q: Gaussian) -> tuple[Tensor, Tensor]:
    """Frobenius distance of section 3 of Otto et al. (2021): Mahalanobis² and ``frobenius_covariance``."""
    return mahalanobis(p, q), frobenius_covariance(p, q)


def kl_covariance(p: Gaussian, q: Gaussian) -> Tensor:
    """½ [tr(Σ_q⁻¹Σ_p) − d − log det(Σ_q⁻¹Σ_p)] in nats, shape of the scales' batch.

    With E = L_q⁻¹(L_p − L_q) it is ½‖E‖²_F + Σ (E_ii − log(1 + E_ii)), in which a small difference keeps its
    digits, and which is zero with zero gradient where the scales are equal. The diagonal case is the same.
    """
    return kl_of_difference(whitened_difference(p, q), p.is_diagonal)


def kl_of_difference(e: Tensor, is_diagonal: bool) -> Tensor:
    """½‖E‖²_F + Σ (E_ii − log(1 + E_ii)) for lower-triangular E, or diagonal E given by its diagonal."""
    if is_diagonal:
        return (0.5 * e.square() + e - torch.log1p(e)).sum(-1)
    diagonal = e.diagonal(dim1=-2, dim2=-1)
    return 0.5 * e.square().sum((-2, -1)) + (diagonal - torch.log1p(diagonal)).sum(-1)


def wasserstein_covariance(p: Gaussian, q: Gaussian) -> Tensor:
    """‖C^½ − I‖²_F with C = L_q⁻¹ Σ_p L_q⁻ᵀ, shape of the scales' batch; ‖σ_p/σ_q − 1‖² if diagonal.

    Equals tr(Σ_q⁻¹Σ_p + I − 2Σ_q⁻¹(Σ_q^½ Σ_p Σ_q^½)^½) of section 3 of Otto et al. (2021) where the matrices
    commute.
    """
    e = whitened_difference(p, q)
    if not p.is_diagonal:
        e = sqrt_difference(e + e.mT + e @ e.mT)
    return e.square().sum(_event_dims(p))


def frobenius_covariance(p: Gaussian, q: Gaussian) -> Tensor:
    """‖Σ_p − Σ_q‖²_F, shape of the scales' batch.

    Σ_p − Σ_q is the symmetric part of (L_p − L_q)(L_p + L_q)ᵀ, which keeps the digits of a small difference.
    """
    _check_kinds(p, q)
    if p.is_diagonal:
        return ((p.scale - q.scale) * (p.scale + q.scale)).square().sum(-1)
    half = (p.scale - q.scale) @ (p.scale + q.scale).mT
    return (0.5 * (half + half.mT)).square().sum((-2, -1))


def whitened_difference(p: Gaussian, q: Gaussian) -> Tensor:
    """E = L_q⁻¹(L_p − L_q), lower-triangular; its diagonal, σ_p/σ_q − 1, for diagonal covariances."""
    _check_kinds(p, q)
    if p.is_diagonal:
        return (p.scale - q.scale) / q.scale
    return torch.linalg.solve_triangular(q.scale, p.scale - q.scale, upper=False)


def _event_dims(gaussian: Gaussian) -> tuple[int, ...]:
    return (-1,) if gaussian.is_diagonal else (-2, -1)


def _check_kinds(p: Gaussian, q: Gaussian) -> None:
    if p.is_diagonal != q.is_diagonal:
        raise ValueError("One Gaussian is diagonal and the other full: build both with std= or both with scale_tril=.")


def _check_shapes(mean: Tensor, name: str, scale: Tensor, event_dims: int) -> None:
    event = mean.shape[-1:] * event_dims
    if scale.shape[-event_dims:] != event:
        raise ValueError(
            f"{name} has shape {tuple(scale.shape)} and the mean {tuple(mean.shape)}: "
            f"{name} must end in {tuple(event)}."
        )
    batch = scale.shape[:-event_dims]
    if batch and batch != mean.shape[:-1]:
        try:
            torch.broadcast_shapes(batch, mean.shape[:-1])
        except RuntimeError:
            raise ValueError(
                f"{name} has shape {tuple(scale.shape)} and the mean {tuple(mean.shape)}: give one scale per mean, "
                f"or a single one of shape {tuple(event)}."
            ) from None
