"""The KL projection: precisions are interpolated until KL(π̃ ‖ π_old) meets its bound (eqs 10 and 11)."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_trl.projections.derivatives import Derivative, with_derivative
from sb3_trl.projections.gaussian import Gaussian, kl_covariance, kl_of_difference, mahalanobis
from sb3_trl.projections.matrices import identity_like, inverse_tril
from sb3_trl.projections.projection import Bound, Projection, project_active_rows, whitened_step
from sb3_trl.projections.root import kl_at, kl_root
from sb3_trl.projections.tracing import can_branch

__all__ = ["KLProjection"]


class KLProjection(Projection):
    """Trust region in KL(π̃ ‖ π_old), nats, split into its mean part and its covariance part.

    The mean part is ½ Mahalanobis², compared with ``mean_bound`` *with* the ½, as in the authors' code.
    The covariance part interpolates precisions, Σ̃⁻¹ = Σ_o⁻¹ + t(Σ⁻¹ − Σ_o⁻¹), where t solves
    KL(t) = ``cov_bound`` (eq. 11 with t = 1/(1 + η)). It is computed in float64 whatever the dtype.
    """

    measures_kl = True

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
            value, q = projected.to(new.scale.dtype), x / (1 + x)
        result = with_derivative(value, new.scale, _STD_BOUNDARY, std, projected, t, q)
        return torch.where(inside, new.scale, result)

    def project_tril(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return the Cholesky factor of Σ̃; only eigen*values* are computed, and no gradient needs them."""
        outside = ~(kl_of_difference(whitened_step(new, old), is_diagonal=False) <= bound)
        return project_active_rows(new, old, bound, outside, _project_precision)


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
    return with_derivative(projected, tril, _TRIL_BOUNDARY, fixed, projected, t[..., None, None], q, normal)


def _std_forward(step: Tensor, std: Tensor, projected: Tensor, t: Tensor, q: Tensor) -> Tensor:
    """dσ̃/σ̃ = t(c − q⟨q, c⟩/⟨q, q⟩) with c = (σ̃/σ)² dσ/σ; q = x/(1 + x) is the gradient of the boundary."""
    return t * projected * _along_boundary((projected / std).square() / std * step, q, (-1,))


def _std_transpose(gradient: Tensor, std: Tensor, projected: Tensor, t: Tensor, q: Tensor) -> Tensor:
    return (projected / std).square() / std * _along_boundary(t * projected * gradient, q, (-1,))


def _tril_forward(step: Tensor, tril: Tensor, projected: Tensor, t: Tensor, q: Tensor, normal: Tensor) -> Tensor:
    """dL̃ = t L̃ Φ(C + Cᵀ) with C = B − S⟨S, B⟩/⟨S, S⟩ and B = QᵀL⁻¹dL Q.

    In the notation of ``_project_precision`` Q = L⁻¹L̃, and S = I − VᵀV is the gradient of the boundary; Φ takes
    the lower triangle with half the diagonal. No eigenvectors are needed, and nothing is divided by differences
    of eigenvalues.
    """
    b = q.mT @ torch.linalg.solve_triangular(tril, step, upper=False) @ q
    c = _along_boundary(b, normal, (-2, -1))
    return t * projected @ ((c + c.mT).tril() - torch.diag_embed(c.diagonal(dim1=-2, dim2=-1)))


def _tril_transpose(gradient: Tensor, tril: Tensor, projected: Tensor, t: Tensor, q: Tensor, normal: Tensor) -> Tensor:
    lower = (projected.mT @ gradient).tril()
    b = _along_boundary(lower + lower.tril(-1).mT, normal, (-2, -1))
    step = torch.linalg.solve_triangular(tril, (t * q @ b).mT, upper=False, left=False).mT
    return step @ q.mT


_STD_BOUNDARY = Derivative("the KL projection of standard deviations", _std_forward, _std_transpose)
_TRIL_BOUNDARY = Derivative("the KL projection of full covariances", _tril_forward, _tril_transpose)


def _along_boundary(step: Tensor, normal: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return v − n⟨n, v⟩/⟨n, n⟩, the part of a step along the boundary of the trust region."""
    weight = normal / normal.square().sum(dims, keepdim=True).clamp(min=torch.finfo(normal.dtype).tiny)
    return torch.addcmul(step, normal, (weight * step).sum(dims, keepdim=True), value=-1)


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


def reachable_bound(bound: Tensor, rounding: Tensor | float) -> Tensor:
    """Return the bound to aim at, so that the result stays below ``bound`` when it is rounded.

    Near the old policy √KL is a distance: four times what rounding can add to it is kept free, and what the
    root finder may miss.
    """
    return ((1 - 1e-11) * bound.sqrt() - (4 * rounding + 1e-14)).clamp(min=1e-15).square()
