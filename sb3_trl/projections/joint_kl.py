"""The joint KL projection: one KL ball for mean and covariance, with the entropy bound inside (App. B.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_trl.projections.gaussian import Gaussian, kl
from sb3_trl.projections.kl import interpolate_precision, inverse_cholesky, reachable_bound
from sb3_trl.projections.projection import Bound, Projection, relative_size
from sb3_trl.projections.root import find_root, kl_root_differentiable, upper_limit

__all__ = ["JointKLProjection"]


class JointKLProjection(Projection):
    """min KL(π̃ ‖ π) s.t. KL(π̃ ‖ π_old) ≤ ε and H(π̃) ≥ β (eq. 17), with ε = ``mean_bound + cov_bound``.

    In the metric of the old policy, N(0, I), let m be the predicted mean and D the predicted precision. With
    multipliers η and ω, t = 1/(1 + η) and κ = t(1 + η + ω), eq. 18 becomes

        P = I + t(D − I),   Σ̃ = κ P⁻¹,   μ̃ = t P⁻¹ D m.

    Given t, the entropy bound alone gives κ in closed form: the larger of 1 and the κ at which H(π̃) = β (the
    latter always, for an entropy *equality*). What is left is one increasing equation, KL(t) = ε. Mean and
    scale depend on each other, so a non-contextual scale becomes contextual.

    Where no Gaussian in the ball has entropy β, the trust region is honoured: the result is the old policy
    with its covariance scaled to the edge of the ball, towards β (see ``is_infeasible``).
    """

    constrains_entropy = True

    def __call__(
        self,
        new: Gaussian,
        old: Gaussian,
        mean_bound: Bound | None = None,
        cov_bound: Bound | None = None,
        entropy_bound: Bound | None = None,
        entropy_equality: bool = False,
    ) -> Gaussian:
        """Return the projection of ``new``; see ``Projection``.

        :param entropy_bound: β in nats, no entropy constraint if ``None``.
        :param entropy_equality: Constrain H(π̃) = β instead of H(π̃) ≥ β.
        """
        old = old.detach()
        batch = torch.broadcast_shapes(new.mean.shape[:-1], old.mean.shape[:-1])
        epsilon = self._bound(mean_bound, cov_bound).double().to(new.mean.device).expand(batch)
        problem = _Problem(_widen(new, batch), _widen(old, batch), entropy_bound, entropy_equality)
        inside = problem.satisfies(new, old, epsilon)
        rounding = torch.finfo(new.mean.dtype).eps * _size(old).expand(batch)
        mean, scale = problem.solve(reachable_bound(epsilon, rounding), inside)
        kept = new.scale.expand(*batch, *new.scale.shape[-1 if new.is_diagonal else -2 :])
        inside_scale = inside[..., None] if new.is_diagonal else inside[..., None, None]
        return new.with_scale(
            torch.where(inside_scale, kept, scale.to(kept.dtype)),
            torch.where(inside[..., None], new.mean, mean.to(new.mean.dtype)),
        )

    def distance(self, p: Gaussian, q: Gaussian) -> tuple[Tensor, Tensor]:
        """Return the two parts of KL(p ‖ q) in nats; their sum is what is bounded."""
        return kl(p, q)

    def is_inside(
        self, p: Gaussian, q: Gaussian, mean_bound: Bound | None = None, cov_bound: Bound | None = None
    ) -> Tensor:
        """Return, for each state, whether KL(p ‖ q) is within the ball."""
        mean, cov = self.distance(p, q)
        return mean + cov <= self._bound(mean_bound, cov_bound).to(mean.device)

    def is_infeasible(
        self,
        old: Gaussian,
        entropy_bound: Bound,
        equality: bool = False,
        mean_bound: Bound | None = None,
        cov_bound: Bound | None = None,
    ) -> Tensor:
        """Return for which states no Gaussian in the ball around ``old`` meets the entropy bound."""
        log_kappa = _kappa_at_old(old, entropy_bound, equality)
        least = 0.5 * old.dim * (torch.expm1(log_kappa) - log_kappa)
        return least > self._bound(mean_bound, cov_bound).to(least.device)

    def project_std(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Not separable: mean and covariance are projected together by calling the projection."""
        raise NotImplementedError("JointKLProjection projects mean and covariance together: call it.")

    def _bound(self, mean_bound: Bound | None, cov_bound: Bound | None) -> Tensor:
        mean_bound = self.mean_bound if mean_bound is None else mean_bound
        return torch.as_tensor(mean_bound + (self.cov_bound if cov_bound is None else cov_bound))


class _Problem:
    """The projection of one batch in the metric of its old policy, float64, diagonal or full."""

    def __init__(self, new: Gaussian, old: Gaussian, entropy_bound: Bound | None, equality: bool) -> None:
        self.old = old
        self.dim = new.dim
        self.equality = equality
        self.mean = old.whiten(new.mean - old.mean)
        if new.is_diagonal:
            self.precision = (old.scale / new.scale).square()
        else:
            whitened = torch.linalg.solve_triangular(new.scale, old.scale, upper=False)
            self.precision = whitened.mT @ whitened
        # β − H_old per dimension, twice: log κ at the old policy.
        self.log_kappa_old = (
            None if entropy_bound is None else 2 * (entropy_bound - old.entropy().detach()) / self.dim
        )

    def satisfies(self, new: Gaussian, old: Gaussian, epsilon: Tensor) -> Tensor:
        """Return which predictions obey both constraints as they are."""
        mean, cov = kl(new.detach(), old)
        inside = (mean + cov).double() <= epsilon
        if self.log_kappa_old is None:
            return inside
        if self.equality:
            return torch.zeros_like(inside)
        return inside & (new.entropy() - old.entropy() >= 0.5 * self.dim * self.log_kappa_old)

    def solve(self, epsilon: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ̃ and the scale of Σ̃, differentiable in the prediction."""
        with torch.no_grad():
            delta, m = self._spectrum()
            t = find_root(lambda t: self._divergence(t, delta, m), epsilon, self._start(delta, m, epsilon))
            _, slope = self._divergence(t, delta, m)
            log_kappa_edge, infeasible = self._edge(epsilon)
        value = self._moments(t)[0]
        t_ = kl_root_differentiable(t, value, torch.where(inside | (t == 1), torch.ones_like(slope), slope))
        t = torch.where((t == 1) | inside, t, t_)
        _, mean, scale = self._moments(t)
        diagonal = self.old.is_diagonal
        expand = infeasible[..., None] if diagonal else infeasible[..., None, None]
        edge = (
            torch.exp(0.5 * log_kappa_edge)[..., None]
            if diagonal
            else torch.exp(0.5 * log_kappa_edge)[..., None, None]
        )
        scale = torch.where(expand, edge * self.old.scale, scale)
        return torch.where(infeasible[..., None], self.old.mean, mean), scale

    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Return the eigenvalues of D and the mean in their basis."""
        if self.old.is_diagonal:
            return self.precision.detach(), self.mean.detach()
        values, vectors = torch.linalg.eigh(self.precision.detach())
        return values, (vectors.mT @ self.mean.detach().unsqueeze(-1)).squeeze(-1)

    def _log_kappa(self, log_det: Tensor) -> Tensor:
        """Return log κ given log det P: H(π̃) = β where that is the binding constraint."""
        if self.log_kappa_old is None:
            return torch.zeros_like(log_det)
        log_kappa = self.log_kappa_old + log_det / self.dim
        return log_kappa if self.equality else log_kappa.clamp(min=0)

    def _divergence(self, t: Tensor, delta: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """Return KL(t) and t·KL′(t) from the spectrum of D."""
        t = t.unsqueeze(-1)
        x = t * (delta - 1)
        p = 1 + x
        mean = t * delta * m / p
        q = x / p
        log_p = torch.log1p(x).sum(-1)
        log_kappa = self._log_kappa(log_p)
        trace = (1 / p).sum(-1)
        value = 0.5 * (
            (torch.log1p(x) - q).sum(-1)
            + torch.expm1(log_kappa) * trace
            - self.dim * log_kappa
            + mean.square().sum(-1)
        )
        # d log κ/d log t = Σq/d where the entropy binds; d mean/d log t = mean/p.
        binding = torch.ones_like(log_kappa) if self.equality else (log_kappa > 0).to(p.dtype)
        kappa_slope = binding * q.sum(-1) / self.dim
        slope = (q - log_kappa.exp().unsqueeze(-1) * q / p + 2 * mean.square() / p).sum(-1)
        slope = 0.5 * (slope + kappa_slope * (log_kappa.exp() * trace - self.dim))
        return value, slope

    def _start(self, delta: Tensor, m: Tensor, epsilon: Tensor) -> Tensor:
        """Return the root of the quadratic model KL(t) ≈ ¼ t²(‖D − I‖² + 2‖Dm‖²), left of the pole."""
        size = (delta - 1).square().sum(-1) + 2 * (delta * m).square().sum(-1)
        start = 2 * epsilon.sqrt() / size.sqrt().clamp(min=torch.finfo(size.dtype).tiny)
        return torch.minimum(start, upper_limit(delta - 1, epsilon)) if self.log_kappa_old is None else start

    def _moments(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return KL(π̃ ‖ π_old), μ̃ and the scale of Σ̃ at t, differentiable in t, D and m."""
        if self.old.is_diagonal:
            weight = t.unsqueeze(-1)
            p = 1 + weight * (self.precision - 1)
            factor = p.rsqrt()
            trace, log_det = (1 / p).sum(-1), p.log().sum(-1)
            whitened = weight * self.precision * self.mean / p
            mean = self.old.mean + self.old.scale * whitened
        else:
            factor = inverse_cholesky(interpolate_precision(t, self.precision))
            trace = factor.square().sum((-2, -1))
            log_det = -2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            moved = t[..., None, None] * (self.precision @ self.mean.unsqueeze(-1))
            whitened = (factor @ (factor.mT @ moved)).squeeze(-1)
            mean = self.old.mean + (self.old.scale @ whitened.unsqueeze(-1)).squeeze(-1)
        log_kappa = self._log_kappa(log_det)
        divergence = 0.5 * (
            log_kappa.exp() * trace - self.dim * (1 + log_kappa) + log_det + whitened.square().sum(-1)
        )
        root = torch.exp(0.5 * log_kappa)
        if self.old.is_diagonal:
            return divergence, mean, root.unsqueeze(-1) * self.old.scale * factor
        return divergence, mean, root[..., None, None] * (self.old.scale @ factor)

    def _edge(self, epsilon: Tensor) -> tuple[Tensor, Tensor]:
        """Return log s with ½ d (s − 1 − log s) = ε on β's side of the old entropy, and where β is beyond it."""
        if self.log_kappa_old is None:
            return torch.zeros_like(epsilon), torch.zeros_like(epsilon, dtype=torch.bool)
        wanted = self.log_kappa_old if self.equality else self.log_kappa_old.clamp(min=0)
        wanted = wanted.expand(epsilon.shape)

        def along(t: Tensor) -> tuple[Tensor, Tensor]:
            x = t * wanted
            return 0.5 * self.dim * (torch.expm1(x) - x), 0.5 * self.dim * x * torch.expm1(x)

        start = 2 * (epsilon / self.dim).sqrt() / wanted.abs().clamp(min=torch.finfo(wanted.dtype).tiny)
        return find_root(along, epsilon, start) * wanted, along(torch.ones_like(epsilon))[0] > epsilon


def _kappa_at_old(old: Gaussian, entropy_bound: Bound, equality: bool) -> Tensor:
    log_kappa = (2 * (entropy_bound - old.entropy()) / old.dim).double()
    return log_kappa if equality else log_kappa.clamp(min=0)


def _widen(gaussian: Gaussian, batch: torch.Size) -> Gaussian:
    """Return the Gaussian in float64 with a scale for every state."""
    event = gaussian.scale.shape[-1:] if gaussian.is_diagonal else gaussian.scale.shape[-2:]
    return gaussian.with_scale(
        gaussian.scale.double().expand(*batch, *event), gaussian.mean.double().expand(*batch, gaussian.dim)
    )


def _size(old: Gaussian) -> Tensor:
    """How far mean and scale are from zero in the old policy's own metric: rounding adds eps times that."""
    if old.is_diagonal:
        return torch.linalg.vector_norm(old.mean / old.scale, dim=-1) + old.dim**0.5
    return torch.linalg.vector_norm(old.whiten(old.mean), dim=-1) + relative_size(old.scale)
