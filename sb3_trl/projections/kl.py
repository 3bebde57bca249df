"""The KL projection: precisions are interpolated until KL(π̃ ‖ π_old) meets its bound (eqs 10 and 11)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sb3_trl.projections.categorical import Categorical, categorical_kl
from sb3_trl.projections.derivatives import Derivative, with_derivative
from sb3_trl.projections.distribution import Bound
from sb3_trl.projections.gaussian import Gaussian, kl_covariance, kl_of_difference, mahalanobis
from sb3_trl.projections.matrices import identity_like, inverse_tril
from sb3_trl.projections.projection import Projection, project_active_rows, whitened_step
from sb3_trl.projections.root import kl_at, kl_root, reachable_bound
from sb3_trl.projections.tilting import tilt
from sb3_trl.projections.tracing import can_branch

__all__ = ["KLProjection"]


class KLProjection(Projection):
    """Trust region in KL(π̃ ‖ π_old), nats; of Gaussians, split into its mean part and its covariance part.

    The mean part is ½ Mahalanobis², compared with ``mean_bound`` *with* the ½, as in the authors' code.
    The covariance part interpolates precisions, Σ̃⁻¹ = Σ_o⁻¹ + t(Σ⁻¹ − Σ_o⁻¹), where t solves
    KL(t) = ``cov_bound`` (eq. 11 with t = 1/(1 + η)). Of categoricals, log-probabilities are interpolated until
    KL(t) = ``kl_bound``. It is computed in float64 whatever the dtype.

    :param mean_bound: ε_μ, nats.
    :param cov_bound: ε_Σ, nats.
    :param kl_bound: ε of categoricals, nats per state, whatever the number of factors.
    """

    measures_kl = True

    def __init__(self, mean_bound: Bound = 0.03, cov_bound: Bound = 1e-3, kl_bound: Bound = 0.01) -> None:
        super().__init__(mean_bound, cov_bound, kl_bound)

    def mean_distance(self, p: Gaussian, q: Gaussian) -> Tensor:
        """Return ½ Mahalanobis², the mean part of KL(p ‖ q) in nats."""
        return 0.5 * mahalanobis(p, q)

    def cov_distance(self, p: Gaussian, q: Gaussian) -> Tensor:
        """Return the covariance part of KL(p ‖ q) in nats."""
        return kl_covariance(p, q)

    def project_mean(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return μ̃ with ½ Mahalanobis² ≤ ε_μ."""
        return super().project_mean(new, old, 2 * bound)

    def project_std(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return σ̃ = σ_o/√(1 + x) with x = t·a and a = σ_o²/σ² − 1."""
        epsilon = torch.as_tensor(bound, dtype=torch.float64, device=new.scale.device)
        with torch.no_grad():
            std, std_old = new.scale.detach().double(), old.scale.double()
            a = (std_old / std).square() - 1
            inside = (kl_at(a) <= epsilon).unsqueeze(-1)
        if can_branch(inside) and bool(inside.all()):
            return torch.broadcast_tensors(new.scale, inside)[0]
        with torch.no_grad():
            rounding = 0.5 * torch.finfo(new.scale.dtype).eps * new.dim**0.5
            t = kl_root(a, reachable_bound(epsilon, rounding)).unsqueeze(-1)
            x = t * a
            projected = std_old * torch.rsqrt(1 + x)
            constants = ((projected / std).square() / std, t * projected, *_normal(x / (1 + x), (-1,)))
        result = with_derivative(projected.to(new.scale.dtype), new.scale, _STD_BOUNDARY, *constants)
        return torch.where(inside, new.scale, result)

    def project_tril(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return the Cholesky factor of Σ̃; only eigen*values* are computed, and no gradient needs them."""
        outside = ~(kl_of_difference(whitened_step(new, old), is_diagonal=False) <= bound)
        return project_active_rows(new, old, bound, outside, _project_precision)

    def categorical_distance(self, p: Categorical, q: Categorical) -> Tensor:
        """Return KL(p ‖ q) in nats, the sum over the factors."""
        return p.kl(q)

    def project_categorical(self, new: Categorical, old: Categorical, bound: Bound) -> Tensor:
        """Return log p̃ = log p_o + t(log p − log p_o) − A(t), with one t for all factors of a state."""
        log_new, log_old = new.finite, old.finite.double()
        epsilon = torch.as_tensor(bound, dtype=torch.float64, device=log_new.device)
        with torch.no_grad():
            outside = ~(categorical_kl(log_new.detach().double(), log_old).sum(-1) <= epsilon)
        if can_branch(outside) and not bool(outside.any()):
            return new.log_probs
        reachable = reachable_bound(epsilon, _rounding(log_new))
        return new.masked(tilt(log_new, log_old, reachable, outside))


def _rounding(log_p: Tensor) -> float:
    """What rounding log-probabilities adds to √KL at most.

    A relative error u of each is one of u·log p, which adds up to √(½ Σ p u² log² p). For a factor with k > 2 actions
    Σ p log² p is at most log² k; with two, 0.563.
    """
    factors, k = log_p.shape[-2:]
    return 0.5 * torch.finfo(log_p.dtype).eps * math.sqrt(0.5 * factors) * max(math.log(k), 0.75)


def _project_precision(tril: Tensor, tril_old: Tensor, bound: Tensor, rounding: Tensor) -> Tensor:
    """Interpolate precisions until ½[tr(P⁻¹) − d + log det P] = ε, P = I + t(D − I), D = L_oᵀ Σ⁻¹ L_o.

    D is the predicted precision in the metric of Σ_o. Its *large* eigenvalues decide how far t may go, and
    those an eigensolver finds to full relative precision whatever the condition number.

    :param tril: L, ``(n, d, d)``.
    :param tril_old: L_o, ``(n, d, d)``.
    :param bound: ε, ``(n,)``.
    :param rounding: What rounding the result can add to √KL, ``(n,)``.
    :return: L̃, ``(n, d, d)``.
    """
    with torch.no_grad():
        fixed = tril.detach()
        f, difference = precision_difference(fixed, tril_old)
        a = torch.linalg.eigvalsh(difference).clamp(min=-1 + torch.finfo(difference.dtype).eps)
        t = kl_root(a, reachable_bound(bound, rounding))
        factor = inverse_cholesky(t, difference)
        projected = tril_old @ factor
        q = (f @ factor).add_(factor)
        normal = (factor.mT @ -factor).add_(identity_like(fixed))
        constants = (fixed, q, t[..., None, None] * projected, *_normal(normal, (-2, -1)))
    return with_derivative(projected, tril, _TRIL_BOUNDARY, *constants)


def _normal(normal: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return n and m = n/⟨n, n⟩: v − n⟨m, v⟩ is the part of a step v along the boundary of the trust region."""
    return normal, normal / normal.square().sum(dims, keepdim=True).clamp(min=torch.finfo(normal.dtype).tiny)


def _std_forward(step: Tensor, inner: Tensor, outer: Tensor, n: Tensor, m: Tensor) -> Tensor:
    """dσ̃ = tσ̃(c − n⟨m, c⟩) with c = (σ̃/σ)² dσ/σ; n = x/(1 + x) is the gradient of the boundary.

    :param inner: (σ̃/σ)²/σ.
    :param outer: tσ̃.
    """
    c = inner * step
    return outer * torch.addcmul(c, n, (m * c).sum(-1, keepdim=True), value=-1)


def _std_transpose(gradient: Tensor, inner: Tensor, outer: Tensor, n: Tensor, m: Tensor) -> Tensor:
    c = outer * gradient
    return inner * torch.addcmul(c, m, (n * c).sum(-1, keepdim=True), value=-1)


def _tril_forward(step: Tensor, tril: Tensor, q: Tensor, outer: Tensor, n: Tensor, m: Tensor) -> Tensor:
    """dL̃ = t L̃ Φ(C + Cᵀ) with C = B − n⟨m, B⟩ and B = QᵀL⁻¹dL Q.

    In the notation of ``_project_precision`` Q = L⁻¹L̃, and n = I − VᵀV is the gradient of the boundary; Φ takes
    the lower triangle with half the diagonal. No eigenvectors are needed, and nothing is divided by differences
    of eigenvalues.

    :param outer: tL̃.
    """
    b = q.mT @ torch.linalg.solve_triangular(tril, step, upper=False) @ q
    c = torch.addcmul(b, n, (m * b).sum((-2, -1), keepdim=True), value=-1)
    return outer @ (c.tril() + c.mT.tril(-1))


def _tril_transpose(gradient: Tensor, tril: Tensor, q: Tensor, outer: Tensor, n: Tensor, m: Tensor) -> Tensor:
    lower = (outer.mT @ gradient).tril()
    c = lower + lower.tril(-1).mT
    b = torch.addcmul(c, m, (n * c).sum((-2, -1), keepdim=True), value=-1)
    step = torch.linalg.solve_triangular(tril, (q @ b).mT, upper=False, left=False).mT
    return step @ q.mT


_STD_BOUNDARY = Derivative("the KL projection of standard deviations", _std_forward, _std_transpose)
_TRIL_BOUNDARY = Derivative("the KL projection of full covariances", _tril_forward, _tril_transpose)


def precision_difference(tril: Tensor, tril_old: Tensor) -> tuple[Tensor, Tensor]:
    """Return F = L⁻¹L_o − I and D − I with D = L_oᵀ Σ⁻¹ L_o, without losing digits near I.

    D, the predicted precision in the metric of Σ_o, is (I + F)ᵀ(I + F).
    """
    f = torch.linalg.solve_triangular(tril, tril_old - tril, upper=False)
    return f, (f.mT @ f).add_(f).add_(f.mT)


def inverse_cholesky(t: Tensor, difference: Tensor) -> Tensor:
    """Return the lower-triangular V with V Vᵀ = P⁻¹, P = I + t(D − I), from the Cholesky factor of P read backwards.

    :param t: ``(*batch,)``.
    :param difference: D − I, ``(*batch, d, d)``.
    """
    precision = torch.addcmul(identity_like(difference), t[..., None, None], difference)
    reversed_factor, _ = torch.linalg.cholesky_ex(precision.flip(-2, -1))
    return inverse_tril(reversed_factor).flip(-2, -1).mT
