"""What every trust-region projection has in common: bounds, the mean's projection, distances, the penalty."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, NoReturn, TypeVar

import torch
from torch import Tensor

from sb3_trl.projections.derivatives import constant
from sb3_trl.projections.distribution import Bound, Distribution
from sb3_trl.projections.gaussian import Gaussian, mahalanobis
from sb3_trl.projections.matrices import matvec, relative_size
from sb3_trl.projections.radial import column, length, radial_projection, radial_weight
from sb3_trl.projections.tracing import can_branch

if TYPE_CHECKING:
    from sb3_trl.projections.categorical import Categorical

__all__ = ["Bound", "Projection"]

D = TypeVar("D", bound=Distribution)


class Projection(ABC):
    """Projects policies, state by state, onto a trust region around old ones.

    For Gaussians it solves eqs 3 and 4 of Otto et al. (2021): the mean and the covariance nearest to the predicted
    ones with d_mean(π̃, π_old) ≤ ε_μ and d_cov(π̃, π_old) ≤ ε_Σ. Categoricals have one distance and one bound. A
    state inside its bounds comes back bit for bit. The result is differentiable (once) in the prediction; old policy
    and bounds are constants.

    To make a projection of your own, subclass it and define ``cov_distance``, ``project_std`` for diagonal
    covariances and ``project_tril`` for full ones; for categoricals ``categorical_distance`` and
    ``project_categorical``.

    :param mean_bound: ε_μ, a positive number or one per state, shape ``(*batch,)``.
    :param cov_bound: ε_Σ, likewise. One per state makes a non-contextual scale contextual.
    :param kl_bound: ε of categoricals, likewise; 0.01 unless given.
    :raises ValueError: if a bound is not positive, or there is a ``kl_bound`` and no projection of categoricals.
    """

    #: Whether the projection takes ``entropy_bound`` and ``entropy_equality`` and leaves nothing to the layer.
    constrains_entropy: bool = False
    #: Whether d(p, q) is KL(p ‖ q) in nats, which the trust region then bounds by the sum of its bounds.
    measures_kl: bool = False
    #: Of projections that were given none, or were saved when there was none.
    kl_bound: Bound = 0.01

    def __init__(self, mean_bound: Bound = 0.03, cov_bound: Bound = 1e-3, kl_bound: Bound | None = None) -> None:
        self.mean_bound = check_bound("mean_bound", mean_bound)
        self.cov_bound = check_bound("cov_bound", cov_bound)
        if kl_bound is not None:
            if not self.projects_categoricals:
                raise ValueError(f"kl_bound={kl_bound} bounds categoricals. {self._for_gaussians}")
            self.kl_bound = check_bound("kl_bound", kl_bound)

    def __repr__(self) -> str:
        names = ["mean_bound", "cov_bound", *(["kl_bound"] if self.projects_categoricals else [])]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)}' for name in names)})"

    def __call__(
        self,
        new: D,
        old: D,
        mean_bound: Bound | None = None,
        cov_bound: Bound | None = None,
        *,
        kl_bound: Bound | None = None,
    ) -> D:
        """Return the projection of ``new`` onto the trust region around ``old``.

        :param new: The prediction.
        :param old: The old policy, of the same kind (diagonal, full or categorical).
        :param mean_bound: Of Gaussians; used instead of the projection's own, as it changes over training; positive.
        :param cov_bound: Likewise.
        :param kl_bound: Of categoricals, likewise.
        :raises ValueError: if the two differ in kind or dimension, or have no such bound.
        """
        bounds = self.bounds(new, mean_bound=mean_bound, cov_bound=cov_bound, kl_bound=kl_bound)
        new.check(old)
        return new.projected_by(self, old.detach(), *bounds)

    def bounds(self, policy: Distribution, **given: Bound | None) -> tuple[Bound, ...]:
        """Return the bounds of a trust region around ``policy``, constants in the order of its ``bound_names``.

        :param given: Bounds by name, used instead of the projection's own where they are not ``None``.
        :raises ValueError: if one is given that this kind of policy does not have.
        :raises NotImplementedError: if the projection is for another kind.
        """
        policy.check_projection(self)
        names = policy.bound_names
        for name, bound in given.items():
            if bound is not None and name not in names:
                raise ValueError(
                    f"{name} does not bound a {type(policy).__name__}: give {' and '.join(names)} instead."
                )
        own = (given.get(name) for name in names)
        return tuple(
            constant(getattr(self, name) if bound is None else bound, policy.tensor)
            for name, bound in zip(names, own, strict=True)
        )

    def distance(self, p: D, q: D) -> tuple[Tensor, ...]:
        """Return d(p, q), one part for each bound, differentiable in ``p``.

        Of Gaussians the mean part and the covariance part. Shapes are ``(*batch,)``, without batch dimensions in the
        covariance part where no scale has any.
        """
        return p.distance_by(self, q)

    def is_inside(
        self,
        p: D,
        q: D,
        mean_bound: Bound | None = None,
        cov_bound: Bound | None = None,
        *,
        kl_bound: Bound | None = None,
    ) -> Tensor:
        """Return, for each state, whether ``p`` is in the trust region around ``q``; shape ``(*batch,)``.

        Distances are measured in float64, in which every projection is inside.
        """
        bounds = self.bounds(p, mean_bound=mean_bound, cov_bound=cov_bound, kl_bound=kl_bound)
        parts = self.distance(p.double(), q.double())
        return reduce(torch.logical_and, [part <= bound for part, bound in zip(parts, bounds, strict=True)])

    def penalty(self, new: D, projected: D) -> Tensor:
        """Return d(π_θ, stop-gradient(π̃)) of eq. 12 for each state; shape ``(*batch,)``.

        Zero, with zero gradient, where nothing was projected. For Gaussians see ``gaussian_penalty``.
        """
        return new.penalty_by(self, projected.detach())

    # --- Gaussians ---

    def project_gaussian(self, new: Gaussian, old: Gaussian, mean_bound: Bound, cov_bound: Bound) -> Gaussian:
        """Return the Gaussian with the projected mean and the projected scale."""
        old = old if old.is_diagonal else old.double()
        mean = self.project_mean(new, old, mean_bound)
        project_scale = self.project_std if new.is_diagonal else self.project_tril
        return new.with_scale(project_scale(new, old, cov_bound), mean)

    def mean_distance(self, p: Gaussian, q: Gaussian) -> Tensor:
        """Return the part of d(p, q) that depends on the means: the squared Mahalanobis distance."""
        return mahalanobis(p, q)

    @abstractmethod
    def cov_distance(self, p: Gaussian, q: Gaussian) -> Tensor:
        """Return the part of d(p, q) that depends on the covariances."""

    def project_mean(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return μ̃ of eqs 5 and 6, the interpolation of the means with squared Mahalanobis distance ≤ ε_μ."""
        if old.std is None:
            return _project_mean_full(new.mean, old, bound)
        size = torch.linalg.vector_norm(old.mean / old.std, dim=-1, keepdim=True)
        rounding = torch.finfo(size.dtype).eps * size
        return radial_projection(new.mean, old.mean, old.std, bound, rounding)

    def project_std(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return the projected standard deviations, in the shape of ``new.std``."""
        raise NotImplementedError(f"{type(self).__name__} does not project diagonal covariances.")

    def project_tril(self, new: Gaussian, old: Gaussian, bound: Bound) -> Tensor:
        """Return the projected Cholesky factors, in the shape of ``new.scale_tril``; ``old`` comes in float64."""
        raise NotImplementedError(f"{type(self).__name__} does not project full covariances.")

    def gaussian_penalty(self, new: Gaussian, target: Gaussian) -> Tensor:
        """Return the penalty of Gaussians.

        The covariance part counts only where the scale is contextual: a non-contextual one is set to its
        projected value after the update. It is zero, with zero gradient, at an invalid scale (see
        ``invalid_scale``).
        """
        mean = self.mean_distance(new, target)
        if not new.is_contextual:
            return mean
        return mean + self.cov_penalty(with_valid_scale(new, target), target)

    def cov_penalty(self, new: Gaussian, target: Gaussian) -> Tensor:
        """Return the covariance part of the penalty; the projection's own distance by default."""
        return self.cov_distance(new, target)

    # --- categoricals ---

    @property
    def projects_categoricals(self) -> bool:
        """Whether ``project_categorical`` is defined."""
        return type(self).project_categorical is not Projection.project_categorical

    def categorical_distance(self, p: Categorical, q: Categorical) -> Tensor:
        """Return d(p, q) of categoricals, ``(*batch,)``; it is the penalty, too."""
        self.refuse_categoricals()

    def project_categorical(self, new: Categorical, old: Categorical, bound: Bound) -> Tensor:
        """Return the projected log-probabilities, in the shape of ``new.log_probs``; −∞ where they are −∞."""
        self.refuse_categoricals()

    def refuse_categoricals(self) -> NoReturn:
        """Raise a ``NotImplementedError`` that names what projects categoricals."""
        raise NotImplementedError(self._for_gaussians)

    @property
    def _for_gaussians(self) -> str:
        return f"{type(self).__name__} is for Gaussians: for categorical policies use KLProjection."


def check_bound(name: str, bound: Bound) -> Bound:
    """Return ``bound`` if it is positive and finite, else raise a ``ValueError`` that says so."""
    if not isinstance(bound, (int, float, Tensor)):
        raise TypeError(f"{name}={bound!r} is a {type(bound).__name__}: give a positive number or a tensor.")
    values = torch.as_tensor(bound)
    if not bool((values > 0).all()) or not bool(values.isfinite().all()):
        raise ValueError(f"{name}={bound} must be positive and finite; a larger bound is a larger trust region.")
    return bound


def project_active_rows(
    new: Gaussian,
    old: Gaussian,
    bound: Bound,
    active: Tensor,
    project: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Project full covariances in float64 where ``active``, and return ``new.scale_tril`` elsewhere.

    Where ``can_branch``, only the active states are computed. A prediction that is not finite or not positive
    definite is replaced by the old scale (see ``invalid_scale``), and so is a result that is not finite.

    :param old: The old policy in float64.
    :param active: Which states violate the bound; broadcasts to the batch.
    :param project: Maps (L, L_old, ε, rounding) of n states, float64, to the projected Cholesky factors;
        ``rounding`` is what rounding L_old to the output's dtype changes in its own metric, n numbers.
    """
    epsilon = torch.as_tensor(bound, dtype=torch.float64, device=new.scale.device)
    batches = (new.scale.shape[:-2], old.scale.shape[:-2])
    shape = torch.broadcast_shapes(active.shape, epsilon.shape, *batches)
    size = (*shape, new.dim, new.dim)
    invalid = invalid_scale(new)
    tril, tril_old = _substitute(new, invalid, old).scale.expand(size), old.scale.expand(size)
    active = (active & ~invalid).expand(shape)
    if can_branch(active) and not bool(active.any()):
        return tril
    epsilon = epsilon.expand(shape)
    unit = 0.5 * torch.finfo(tril.dtype).eps
    rounding = (unit * relative_size(old.scale, old.inverse_tril)).expand(shape)

    def compute(rows: Tensor, rows_old: Tensor, epsilon: Tensor, rounding: Tensor) -> Tensor:
        result = project(rows.double(), rows_old, epsilon, rounding).to(rows.dtype)
        finite = _is_finite(result.detach())
        if can_branch(finite) and bool(finite.all()):
            return result
        return torch.where(finite[..., None, None], result, rows_old.to(rows.dtype))

    if can_branch(active) and bool(active.all()):
        return compute(tril, tril_old, epsilon, rounding)
    if not can_branch(active):
        return torch.where(active[..., None, None], compute(tril, tril_old, epsilon, rounding), tril)
    rows = active.reshape(-1).nonzero().squeeze(-1)
    flat, *others = (x.reshape(-1, *x.shape[len(shape) :]) for x in (tril, tril_old, epsilon, rounding))
    projected = compute(flat[rows], *(x[rows] for x in others))
    return flat.index_put((rows,), projected).reshape(size)


def whitened_step(new: Gaussian, old: Gaussian) -> Tensor:
    """E = L_o⁻¹(L − L_o) in float64, without gradient, for full covariances."""
    return old.inverse_tril @ (new.scale.detach().double() - old.scale)


def invalid_scale(gaussian: Gaussian) -> Tensor:
    """Return where a scale is not finite or not positive (definite); shape of the scale's batch."""
    scale = gaussian.scale.detach()
    if gaussian.is_diagonal:
        return ~(scale.isfinite() & (scale > 0)).all(-1)
    return ~(_is_finite(scale) & (scale.diagonal(dim1=-2, dim2=-1) > 0).all(-1))


def with_valid_scale(gaussian: Gaussian, substitute: Gaussian) -> Gaussian:
    """Return the Gaussian with its invalid scales, if it is full, replaced by those of ``substitute``.

    A network can predict a matrix that is not positive definite; standard deviations are invalid only when the
    network itself is, which must not be hidden.
    """
    return gaussian if gaussian.is_diagonal else _substitute(gaussian, invalid_scale(gaussian), substitute)


def _project_mean_full(new: Tensor, old: Gaussian, bound: Bound) -> Tensor:
    """Project the means in the metric of a full covariance, in float64."""
    step = new.double() - old.mean
    distance = length(matvec(old.inverse_tril, step), keepdim=True)
    t, inside = radial_weight(distance.detach(), column(bound))
    if can_branch(inside) and bool(inside.all()):
        return new
    reach = old.mean.abs() + t * step.detach().abs()
    rounding = torch.linalg.vector_norm(matvec(old.inverse_tril.abs(), reach), dim=-1, keepdim=True)
    t, inside = radial_weight(distance, column(bound), torch.finfo(new.dtype).eps * rounding)
    return torch.where(inside, new, (old.mean + t * step).to(new.dtype))


def _substitute(gaussian: Gaussian, where: Tensor, substitute: Gaussian) -> Gaussian:
    if can_branch(where) and not bool(where.any()):
        return gaussian
    scale = substitute.scale.to(gaussian.scale.dtype)
    return gaussian.with_scale(torch.where(where[..., None, None], scale, gaussian.scale))


def _is_finite(matrix: Tensor) -> Tensor:
    # The sum is finite where all entries are, and much faster to test.
    return matrix.sum((-2, -1)).isfinite()
