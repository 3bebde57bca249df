"""The joint KL projection: one KL ball for mean and covariance, with the entropy bound inside (App. B.5)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sb3_trl.projections.derivatives import constant
from sb3_trl.projections.distribution import Bound
from sb3_trl.projections.gaussian import Gaussian, kl, kl_covariance, mahalanobis
from sb3_trl.projections.kl import inverse_cholesky, precision_difference
from sb3_trl.projections.matrices import matvec, relative_size
from sb3_trl.projections.projection import Projection, with_valid_scale
from sb3_trl.projections.root import find_root, implicit_gradient, pole_limit, reachable_bound
from sb3_trl.projections.tracing import can_branch

__all__ = ["JointKLProjection"]


class JointKLProjection(Projection):
    """min KL(π̃ ‖ π) s.t. KL(π̃ ‖ π_old) ≤ ε and H(π̃) ≥ β (eq. 17), with ε = ``mean_bound + cov_bound``.

    In the metric of the old policy, N(0, I), let m be the predicted mean and D the predicted precision. With
    multipliers η and ω, t = 1/(1 + η) and κ = t(1 + η + ω), eq. 18 becomes

        P = I + t(D − I),   Σ̃ = κ P⁻¹,   μ̃ = t P⁻¹ D m.

    Given t, the entropy bound alone gives κ in closed form: the larger of 1 and the κ at which H(π̃) = β (the
    latter always, for an entropy *equality*). What is left is one increasing equation, KL(t) = ε. Mean and
    scale depend on each other, so a non-contextual scale becomes contextual. Computed in float64.

    Where no Gaussian in the ball has entropy β, the trust region is honoured: the result is the old policy
    with its covariance scaled to the edge of the ball, towards β (see ``is_infeasible``).
    """

    constrains_entropy = True
    measures_kl = True

    def __call__(
        self,
        new: Any,
        old: Any,
        mean_bound: Bound | None = None,
        cov_bound: Bound | None = None,
        entropy_bound: Bound | None = None,
        entropy_equality: bool = False,
        *,
        kl_bound: Bound | None = None,
    ) -> Any:
        """Return the projection of ``new``, a Gaussian; see ``Projection``.

        :param entropy_bound: β in nats, a number or one per state; no entropy constraint if ``None``.
        :param entropy_equality: Constrain H(π̃) = β instead of H(π̃) ≥ β.
        """
        mean_bound, cov_bound = self.bounds(new, mean_bound=mean_bound, cov_bound=cov_bound, kl_bound=kl_bound)
        new.check(old)
        old = old.detach()
        new = with_valid_scale(new, old)
        problem = _Constraints(
            self._bound(new, mean_bound, cov_bound), _log_kappa_at_old(old, entropy_bound), entropy_equality
        )
        inside = problem.satisfied(new.double(), old.double())
        new = _expand(new, inside.shape)
        if can_branch(inside) and bool(inside.all()):
            return new
        path = _DiagonalPath if new.is_diagonal else _FullPath
        wide, wide_old = new.double(), _expand(old.double(), inside.shape)
        rounding = 0.5 * torch.finfo(new.mean.dtype).eps * _size(wide_old)
        return _choose(inside, new, path(wide, wide_old).solve(problem.with_margin(rounding), inside))

    def mean_distance(self, p: Gaussian, q: Gaussian) -> Tensor:
        """Return ½ Mahalanobis², the mean part of KL(p ‖ q) in nats."""
        return 0.5 * mahalanobis(p, q)

    def cov_distance(self, p: Gaussian, q: Gaussian) -> Tensor:
        """Return the covariance part of KL(p ‖ q) in nats; the sum of both parts is what is bounded."""
        return kl_covariance(p, q)

    def is_inside(
        self,
        p: Any,
        q: Any,
        mean_bound: Bound | None = None,
        cov_bound: Bound | None = None,
        *,
        kl_bound: Bound | None = None,
    ) -> Tensor:
        """Return, for each state, whether KL(p ‖ q) ≤ ε, measured in float64; shape ``(*batch,)``."""
        mean_bound, cov_bound = self.bounds(p, mean_bound=mean_bound, cov_bound=cov_bound, kl_bound=kl_bound)
        mean, cov = self.distance(p.double(), q.double())
        return mean + cov <= self._bound(p, mean_bound, cov_bound)

    def is_infeasible(
        self,
        old: Gaussian,
        entropy_bound: Bound,
        equality: bool = False,
        mean_bound: Bound | None = None,
        cov_bound: Bound | None = None,
    ) -> Tensor:
        """Return for which states no Gaussian in the ball around ``old`` meets the entropy bound."""
        log_kappa = _log_kappa_at_old(old, entropy_bound)
        problem = _Constraints(self._bound(old, mean_bound, cov_bound), log_kappa, equality)
        infeasible = problem.least_divergence(old.dim) > problem.epsilon
        return infeasible.expand(torch.broadcast_shapes(infeasible.shape, old.mean.shape[:-1]))

    def _bound(self, gaussian: Gaussian, mean_bound: Bound | None, cov_bound: Bound | None) -> Tensor:
        mean = constant(self.mean_bound if mean_bound is None else mean_bound, gaussian.mean)
        cov = constant(self.cov_bound if cov_bound is None else cov_bound, gaussian.mean)
        return torch.as_tensor(mean + cov, dtype=torch.float64, device=gaussian.mean.device)


@dataclass(frozen=True)
class _Constraints:
    """KL(π̃ ‖ π_old) ≤ ε and H(π̃) ≥ β, or = β.

    :param epsilon: ε in nats, float64; broadcasts to the batch.
    :param log_kappa_old: 2 (β − H_old)/d, the log κ that gives the old covariance entropy β; −∞ without β.
    :param equality: Whether the entropy is to be equal to β.
    """

    epsilon: Tensor
    log_kappa_old: Tensor
    equality: bool

    def satisfied(self, new: Gaussian, old: Gaussian) -> Tensor:
        """Return which predictions obey both constraints as they are."""
        mean, cov = kl(new.detach(), old)
        if self.equality:
            return torch.zeros_like(mean + cov + self.log_kappa_old + self.epsilon, dtype=torch.bool)
        gain = 2 * (new.detach().scale_entropy - old.scale_entropy) / old.dim
        return (mean + cov <= self.epsilon) & (gain >= self.log_kappa_old)

    def with_margin(self, rounding: Tensor) -> _Constraints:
        """Return the constraints with an ε from which rounding does not lead out of the ball."""
        return replace(self, epsilon=reachable_bound(self.epsilon, rounding))

    def log_kappa(self, log_det: Tensor | float, dim: int) -> Tensor:
        """Return log κ given log det P: where the entropy bound binds, that of H(π̃) = β, else 0."""
        log_kappa = self.log_kappa_old + log_det / dim
        return log_kappa if self.equality else log_kappa.clamp(min=0)

    def least_divergence(self, dim: int) -> Tensor:
        """Return the smallest KL(π̃ ‖ π_old) of any Gaussian with the wanted entropy, ½ d (κ − 1 − log κ)."""
        return _scaling_divergence(self.log_kappa(0.0, dim), dim)

    def edge(self, dim: int) -> Tensor:
        """Return log κ with ½ d (κ − 1 − log κ) = ε on β's side of the old entropy, or nearer to β if that is."""
        wanted = self.log_kappa(0.0, dim) + torch.zeros_like(self.epsilon)

        def along(t: Tensor) -> tuple[Tensor, Tensor]:
            x = t * wanted
            return _scaling_divergence(x, dim), 0.5 * dim * x * torch.expm1(x)

        start = 2 * (self.epsilon / dim).sqrt() / wanted.abs().clamp(min=torch.finfo(wanted.dtype).tiny)
        return wanted * find_root(along, self.epsilon, start, torch.ones_like(start))

    def limit(self, a: Tensor, room: Tensor) -> Tensor:
        """Return an upper limit of t at which P is still far from singular."""
        if self.equality:
            return torch.full_like(room, 1 - 1e-10)
        return pole_limit(a, torch.maximum(self.epsilon, room).sqrt())


class _Point(NamedTuple):
    """A candidate in the metric of the old policy, with its covariance divided by κ: P⁻¹ = V Vᵀ."""

    mean: Tensor
    factor: Tensor
    trace: Tensor
    log_det: Tensor


class _Path(ABC):
    """The candidates π̃(t) of one batch, float64, every state with a scale of its own."""

    def __init__(self, new: Gaussian, old: Gaussian) -> None:
        self.old = old
        self.mean = old.whiten(new.mean - old.mean)

    @abstractmethod
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Return the eigenvalues a of D − I and the mean m in their basis."""

    @abstractmethod
    def at(self, t: Tensor) -> _Point:
        """Return the candidate at t, differentiable in t and the prediction."""

    @abstractmethod
    def compose(self, factor: Tensor) -> Tensor:
        """Return the scale L_o V."""

    def solve(self, constraints: _Constraints, inside: Tensor) -> Gaussian:
        """Return π̃, differentiable in the prediction; where ``inside``, anything finite."""
        dim = self.old.dim
        with torch.no_grad():
            a, m = self.spectrum()
            # KL(t) − KL(0) grows like t²; KL(0) > 0 where the old policy violates the entropy bound.
            least = constraints.least_divergence(dim)
            infeasible = least > constraints.epsilon
            room = torch.where(infeasible | inside, torch.ones_like(m[..., 0]), constraints.epsilon - least)
            size = (a.square() + 2 * ((1 + a) * m).square()).sum(-1).sqrt()
            start = 2 * room.sqrt() / size.clamp(min=torch.finfo(size.dtype).tiny)
            limit = constraints.limit(a, room)
            t = find_root(lambda t: _divergence(t, a, m, constraints), room, start, limit)
            value, slope = _divergence(t, a, m, constraints)
            # Scales a million times the old ones ask for a t beyond the precision of numbers near 1.
            t = torch.where(value <= room * (1 + 1e-10), t, torch.zeros_like(t))
            slope = torch.where(inside | infeasible | (t == limit), torch.inf, slope)
        point = self.at(t)
        log_kappa = constraints.log_kappa(point.log_det, dim)
        value = log_kappa.exp() * point.trace - dim * log_kappa + point.log_det + point.mean.square().sum(-1)
        point = self.at(implicit_gradient(t, 0.5 * value, slope))
        root = torch.exp(0.5 * constraints.log_kappa(point.log_det, dim))
        mean = self.old.mean + self.old.unwhiten(point.mean)
        solution = self.old.with_scale(self.compose(point.factor), mean).scaled(root)
        return _choose(infeasible, self.old.scaled(torch.exp(0.5 * constraints.edge(dim))), solution)


class _DiagonalPath(_Path):
    def __init__(self, new: Gaussian, old: Gaussian) -> None:
        super().__init__(new, old)
        self.difference = (old.scale / new.scale).square() - 1

    def spectrum(self) -> tuple[Tensor, Tensor]:
        return self.difference.detach(), self.mean.detach()

    def at(self, t: Tensor) -> _Point:
        x = t.unsqueeze(-1) * self.difference
        p = 1 + x
        mean = t.unsqueeze(-1) * (1 + self.difference) * self.mean / p
        return _Point(mean, p.rsqrt(), (1 / p).sum(-1), torch.log1p(x).sum(-1))

    def compose(self, factor: Tensor) -> Tensor:
        return self.old.scale * factor


class _FullPath(_Path):
    def __init__(self, new: Gaussian, old: Gaussian) -> None:
        super().__init__(new, old)
        _, self.difference = precision_difference(new.scale, old.scale)

    def spectrum(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.difference.detach())
        return values.clamp(min=-1 + torch.finfo(values.dtype).eps), matvec(vectors.mT, self.mean.detach())

    def at(self, t: Tensor) -> _Point:
        factor = inverse_cholesky(t, self.difference)
        moved = t.unsqueeze(-1) * (self.mean + matvec(self.difference, self.mean))
        mean = matvec(factor, matvec(factor.mT, moved))
        log_det = -2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return _Point(mean, factor, factor.square().sum((-2, -1)), log_det)

    def compose(self, factor: Tensor) -> Tensor:
        return self.old.scale @ factor


def _divergence(t: Tensor, a: Tensor, m: Tensor, constraints: _Constraints) -> tuple[Tensor, Tensor]:
    """Return KL(t) − KL(0) and t·KL′(t) from the spectrum of D − I, with x = t·a and q = x/(1 + x).

    Written so that nothing is lost where x is small, or near −1.
    """
    dim = a.shape[-1]
    t = t.unsqueeze(-1)
    x = t * a
    q = x / (1 + x)
    sum_log_p, sum_q = torch.log1p(x).sum(-1), q.sum(-1)
    mean = (t * (1 + a) * m / (1 + x)).square()
    log_kappa, start = constraints.log_kappa(sum_log_p, dim), constraints.log_kappa(0.0, dim)
    kappa, rise = log_kappa.exp(), log_kappa - start
    value = (sum_log_p - dim * rise) + dim * start.exp() * torch.expm1(rise) - kappa * sum_q + mean.sum(-1)
    binding = 1.0 if constraints.equality else (log_kappa > 0).to(x.dtype)
    variance = q.square().sum(-1) - binding * sum_q.square() / dim
    slope = kappa * variance + 2 * (mean * (1 - q)).sum(-1)
    return 0.5 * value, 0.5 * slope


def _choose(condition: Tensor, first: Gaussian, second: Gaussian) -> Gaussian:
    """Return ``first`` where ``condition`` holds and ``second`` elsewhere, in the dtype of ``first``."""
    mean = torch.where(condition[..., None], first.mean, second.mean.to(first.mean.dtype))
    condition = condition[..., None] if first.is_diagonal else condition[..., None, None]
    return first.with_scale(torch.where(condition, first.scale, second.scale.to(first.scale.dtype)), mean)


def _scaling_divergence(log_kappa: Tensor, dim: int) -> Tensor:
    """½ d (κ − 1 − log κ), the divergence of a Gaussian from itself with κ times the covariance."""
    return 0.5 * dim * (torch.expm1(log_kappa) - log_kappa)


def _log_kappa_at_old(old: Gaussian, entropy_bound: Bound | None) -> Tensor:
    entropy = old.double().scale_entropy
    return 2 * ((-math.inf if entropy_bound is None else constant(entropy_bound, entropy)) - entropy) / old.dim


def _expand(gaussian: Gaussian, batch: torch.Size) -> Gaussian:
    """Return the Gaussian with a mean and a scale for every state."""
    event = gaussian.scale.shape[-1 if gaussian.is_diagonal else -2 :]
    return gaussian.with_scale(gaussian.scale.expand(*batch, *event), gaussian.mean.expand(*batch, gaussian.dim))


def _size(old: Gaussian) -> Tensor:
    """How far mean and scale are from zero in the old policy's own metric: rounding adds eps times that."""
    if old.is_diagonal:
        return torch.linalg.vector_norm(old.mean / old.scale, dim=-1) + old.dim**0.5
    return torch.linalg.vector_norm(old.whiten(old.mean), dim=-1) + relative_size(old.scale, old.inverse_tril)
