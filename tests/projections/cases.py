"""Random Gaussians to project, and distances written a second time, independently of the package."""

import math

import torch as th

from sb3_trl.projections import (
    FrobeniusProjection,
    Gaussian,
    JointKLProjection,
    KLProjection,
    Projection,
    WassersteinProjection,
)

SEPARATE = {"kl": KLProjection, "w2": WassersteinProjection, "frobenius": FrobeniusProjection}
ALL = {**SEPARATE, "joint_kl": JointKLProjection}
KINDS = ("diagonal", "full")


def tril(*batch: int, dim: int, condition: float = 30.0, dtype: th.dtype = th.float64) -> th.Tensor:
    """Cholesky factors of random covariances with eigenvalues log-uniform over ``condition``, both ends taken."""
    exponent = th.rand(*batch, dim, dtype=th.float64) - 0.5
    if dim > 1:
        exponent[..., 0], exponent[..., 1] = -0.5, 0.5
    basis = th.linalg.qr(th.randn(*batch, dim, dim, dtype=th.float64))[0]
    # QR of the square root's transpose keeps the small eigenvalues that forming the product would lose.
    root = (basis * (condition ** (0.5 * exponent)).unsqueeze(-2)).mT
    upper = th.linalg.qr(root)[1]
    return (upper * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1)).mT.to(dtype)


def gaussian(
    *batch: int,
    dim: int,
    kind: str,
    contextual: bool = True,
    condition: float = 30.0,
    offset: float = 1.0,
    dtype: th.dtype = th.float64,
) -> Gaussian:
    """A random Gaussian with |mean| around ``offset``."""
    mean = offset * th.randn(*batch, dim, dtype=dtype)
    own = batch if contextual else ()
    if kind == "full":
        return Gaussian(mean, scale_tril=tril(*own, dim=dim, condition=condition, dtype=dtype))
    std = condition ** (0.5 * (th.rand(*own, dim, dtype=dtype) - 0.5))
    return Gaussian(mean, std=std)


def moved(old: Gaussian, size: float | th.Tensor) -> Gaussian:
    """A prediction ``size`` old standard deviations away (a number or one per state), the means and the scales."""
    scale_size = mean_size = size
    if isinstance(size, th.Tensor):
        mean_size = size.unsqueeze(-1)
        scale_size = mean_size if old.is_diagonal else mean_size.unsqueeze(-1)
        if not old.is_contextual:
            scale_size = size.amax()
    mean = old.mean + old.unwhiten(mean_size * th.randn_like(old.mean))
    if old.is_diagonal:
        return old.with_scale(old.scale * th.exp(scale_size * th.randn_like(old.scale)), mean)
    noise = scale_size * th.randn_like(old.scale) / math.sqrt(old.dim)
    factor = noise.tril(-1) + th.diag_embed(th.exp(noise.diagonal(dim1=-2, dim2=-1)))
    return old.with_scale(old.scale @ factor, mean)


def pair(
    *batch: int,
    dim: int,
    kind: str,
    contextual: bool = True,
    size: float | th.Tensor = 0.3,
    condition: float = 30.0,
    offset: float = 1.0,
    dtype: th.dtype = th.float64,
) -> tuple[Gaussian, Gaussian]:
    """A prediction and the old policy."""
    old = gaussian(*batch, dim=dim, kind=kind, contextual=contextual, condition=condition, offset=offset, dtype=dtype)
    return moved(old, size), old


def leaf(gaussian: Gaussian) -> Gaussian:
    """The same numbers, as leaves that collect gradients."""
    return gaussian.with_scale(
        gaussian.scale.detach().clone().requires_grad_(), gaussian.mean.detach().clone().requires_grad_()
    )


def backward(projected: Gaussian, cotangent: Gaussian | None = None) -> None:
    """Back-propagate random-sign cotangents from mean and scale."""
    for name in ("mean", "scale"):
        value = getattr(projected, name)
        weight = getattr(cotangent, name) if cotangent else th.randn_like(value).sign()
        if value.requires_grad:
            value.backward(weight, retain_graph=True)


def distances(projection: Projection, p: Gaussian, q: Gaussian) -> tuple[th.Tensor, th.Tensor]:
    """Mean and covariance distance of the projection, in float64, from the definitions."""
    p, q = p.detach().double(), q.detach().double()
    factor = 0.5 if isinstance(projection, (KLProjection, JointKLProjection)) else 1.0
    white = th.linalg.solve_triangular(q.scale_tril, (p.mean - q.mean).unsqueeze(-1), upper=False).squeeze(-1)
    if p.is_diagonal:
        white = (p.mean - q.mean) / q.scale
    return factor * white.square().sum(-1), _cov_distance(projection, p, q)


def _cov_distance(projection: Projection, p: Gaussian, q: Gaussian) -> th.Tensor:
    if isinstance(projection, FrobeniusProjection):
        if p.is_diagonal:
            return ((p.scale - q.scale) * (p.scale + q.scale)).square().sum(-1)
        return (p.covariance - q.covariance).square().sum((-2, -1))
    if p.is_diagonal:
        change = (p.scale - q.scale) / q.scale
        if isinstance(projection, WassersteinProjection):
            return change.square().sum(-1)
        excess = change * (2 + change)
        return 0.5 * (excess - excess.log1p()).sum(-1)
    white = th.linalg.solve_triangular(q.scale, p.scale, upper=False)
    singular = th.linalg.svdvals(white)
    if isinstance(projection, WassersteinProjection):
        if projection.commuting:
            step = matrix_sqrt(p.covariance) - matrix_sqrt(q.covariance)
            return th.linalg.solve_triangular(q.scale, step, upper=False).square().sum((-2, -1))
        return (singular - 1).square().sum(-1)
    excess = (singular - 1) * (singular + 1)
    return 0.5 * (excess - excess.log1p()).sum(-1)


def matrix_sqrt(matrix: th.Tensor) -> th.Tensor:
    """The symmetric square root, from the singular value decomposition."""
    left, values, _ = th.linalg.svd(matrix)
    return (left * values.sqrt().unsqueeze(-2)) @ left.mT
