"""Random policies to project, and distances written a second time, independently of the package."""

import math
from collections.abc import Sequence

import torch as th

from sb3_trl.projections import (
    Categorical,
    Distribution,
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
#: Every projection with every kind of policy it projects.
CASES = [(name, kind) for name in ALL for kind in KINDS] + [("kl", "categorical")]


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


def categorical(*batch: int, sizes: Sequence[int] = (4,), spread: float = 1.0, dtype=th.float64) -> Categorical:
    """Random categoricals whose logits have the standard deviation ``spread``."""
    return Categorical.from_logits(spread * th.randn(*batch, sum(sizes), dtype=th.float64).to(dtype), sizes)


def tilted(old: Categorical, size: float | th.Tensor) -> Categorical:
    """A prediction whose logits are ``size`` away (a number or one per state)."""
    if isinstance(size, th.Tensor):
        size = size[..., None, None]
    logits = old.log_probs + size * th.randn_like(old.log_probs)
    return Categorical(logits.log_softmax(-1))


def pair(
    *batch: int,
    dim: int,
    kind: str,
    contextual: bool = True,
    size: float | th.Tensor = 0.3,
    condition: float = 30.0,
    offset: float = 1.0,
    dtype: th.dtype = th.float64,
) -> tuple[Distribution, Distribution]:
    """A prediction and the old policy; categoricals have ``dim`` factors, the last of which has fewer actions."""
    if kind == "categorical":
        old = categorical(*batch, sizes=[4] * (dim - 1) + [3], dtype=dtype)
        return tilted(old, size), old
    old = gaussian(*batch, dim=dim, kind=kind, contextual=contextual, condition=condition, offset=offset, dtype=dtype)
    return moved(old, size), old


def tensors(policy: Distribution) -> tuple[th.Tensor, ...]:
    """The parameters of a policy of any kind."""
    return (policy.log_probs,) if isinstance(policy, Categorical) else (policy.mean, policy.scale)


def with_tensors(policy: Distribution, parameters: Sequence[th.Tensor]) -> Distribution:
    """A policy of the same kind with other parameters."""
    if isinstance(policy, Categorical):
        return Categorical(*parameters)
    mean, scale = parameters
    return policy.with_scale(scale, mean)


def equal(p: Distribution, q: Distribution) -> bool:
    """Whether two policies of one kind are the same bit for bit."""
    return all(th.equal(a, b) for a, b in zip(tensors(p), tensors(q), strict=True))


def close(p: Distribution, q: Distribution, rtol: float = 1e-12, atol: float = 1e-13) -> bool:
    """Whether two policies of one kind are the same up to rounding."""
    return all(th.allclose(a, b, rtol=rtol, atol=atol) for a, b in zip(tensors(p), tensors(q), strict=True))


def leaf(policy: Distribution) -> Distribution:
    """The same numbers, as leaves that collect gradients."""
    return with_tensors(policy, [x.detach().clone().requires_grad_() for x in tensors(policy)])


def gradients(policy: Distribution) -> list[th.Tensor]:
    """What ``leaf`` collected."""
    return [x.grad for x in tensors(policy)]


def backward(projected: Distribution, cotangent: Distribution | None = None) -> None:
    """Back-propagate random-sign cotangents from every parameter."""
    weights = [th.randn_like(x).sign() for x in tensors(projected)] if cotangent is None else tensors(cotangent)
    for value, weight in zip(tensors(projected), weights, strict=True):
        if value.requires_grad:
            value.backward(weight, retain_graph=True)


def divergence(p: Categorical, q: Categorical) -> th.Tensor:
    """KL(p ‖ q) in float64, of the distributions that the numbers stand for once they are normalised."""
    log_p, log_q = (x.log_probs.detach().double().log_softmax(-1) for x in (p, q))
    d = log_p - log_q
    below = log_p.exp() * d - log_q.exp() * th.expm1(d)
    above = log_p.exp() * (d + th.expm1(-d))
    terms = th.where(d < 0, below, above)
    return th.where(log_p.isneginf(), log_q.exp(), terms).sum((-2, -1))


def distances(projection: Projection, p: Distribution, q: Distribution) -> tuple[th.Tensor, ...]:
    """Mean and covariance distance of the projection, or KL, in float64, from the definitions."""
    if isinstance(p, Categorical):
        return (divergence(p, q),)
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
