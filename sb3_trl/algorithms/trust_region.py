"""The trust region of one update: the old policy and its bounds at every state, and what is measured of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch as th

from sb3_trl.projections import (
    FrobeniusProjection,
    Gaussian,
    JointKLProjection,
    KLProjection,
    Projection,
    TrustRegionLayer,
    WassersteinProjection,
)
from sb3_trl.projections.gaussian import kl
from sb3_trl.table import Shared, Table, joined, table

__all__ = ["PROJECTIONS", "TrustRegion", "concatenate", "make_projection", "widen"]

#: Projections by name.
PROJECTIONS: dict[str, Callable[[], Projection]] = {
    "kl": KLProjection,
    "w2": WassersteinProjection,
    "w2_commuting": partial(WassersteinProjection, commuting=True),
    "frobenius": FrobeniusProjection,
    "joint_kl": JointKLProjection,
}


@dataclass(frozen=True)
class TrustRegion:
    """Where the policy may go in one update, at n states.

    :param layer: Projection and entropy control.
    :param old: The policy that collected the data, n states.
    :param mean_bound: ε_μ, a scalar tensor or ``(n,)``.
    :param cov_bound: ε_Σ, likewise.
    :param entropy_bound: β in nats, a scalar tensor, ``None`` without entropy control.
    """

    layer: TrustRegionLayer
    old: Gaussian
    mean_bound: th.Tensor
    cov_bound: th.Tensor
    entropy_bound: th.Tensor | None = None

    @property
    def projection(self) -> Projection | None:
        """The projection, ``None`` if there is only entropy control or nothing."""
        return self.layer.projection

    def project(self, new: Gaussian) -> Gaussian:
        """Return π̃."""
        return self.layer(new, self.old, self.mean_bound, self.cov_bound, self.entropy_bound)

    def scaled(self, factor: float) -> TrustRegion:
        """Return the trust region with ``factor`` times the bounds."""
        return TrustRegion(self.layer, self.old, factor * self.mean_bound, factor * self.cov_bound, self.entropy_bound)

    def is_inside(self, policy: Gaussian) -> th.Tensor:
        """Return for each state whether ``policy`` obeys the bounds, measured in float64; shape ``(n,)``."""
        if self.projection is None:
            return th.ones(policy.mean.shape[:-1], dtype=th.bool, device=policy.mean.device)
        return self.projection.is_inside(widen(policy), widen(self.old), self.mean_bound, self.cov_bound)

    def measure(self, policy: Gaussian) -> dict[str, float]:
        """Return the trust-region log of the acting policy, measured in float64."""
        policy, old = widen(policy), widen(self.old)
        mean_part, cov_part = kl(policy, old)
        divergence = mean_part + cov_part
        values: dict[str, Any] = {"kl_mean": divergence.mean(), "kl_max": divergence.max()}
        values["entropy"] = policy.entropy().mean()
        values["violation_fraction"] = 1 - self.is_inside(policy).double().mean()
        if self.projection is not None:
            names = ("mean_distance", "cov_distance")
            for name, distance in zip(names, self.projection.distance(policy, old), strict=True):
                values |= {f"{name}_mean": distance.mean(), f"{name}_max": distance.max()}
            values |= {"mean_bound": self.mean_bound.mean(), "cov_bound": self.cov_bound.mean()}
            if self.projection.measures_kl:
                values["kl_bound"] = (self.mean_bound + self.cov_bound).mean()
        if self.entropy_bound is not None:
            values["entropy_bound"] = self.entropy_bound
        return {key: float(value) for key, value in values.items()}


@table.register
def _(data: Gaussian) -> Table:
    scale = table(data.scale) if data.is_contextual else table(Shared(data.scale))
    return joined([table(data.mean), scale], partial(_gaussian, data.is_diagonal), (Gaussian, data.is_diagonal))


@table.register
def _(data: TrustRegion) -> Table:
    bounds = [table(bound) if bound.dim() else table(Shared(bound)) for bound in (data.mean_bound, data.cov_bound)]
    entropy = table(None) if data.entropy_bound is None else table(Shared(data.entropy_bound))
    return joined([table(data.old), *bounds, entropy], lambda parts: TrustRegion(data.layer, *parts), TrustRegion)


def _gaussian(is_diagonal: bool, parts: Sequence[th.Tensor]) -> Gaussian:
    mean, scale = parts
    return Gaussian(mean, std=scale) if is_diagonal else Gaussian(mean, scale_tril=scale)


def widen(gaussian: Gaussian) -> Gaussian:
    """Return the Gaussian in float64, in which distances lose nothing worth mentioning."""
    return gaussian.with_scale(gaussian.scale.double(), gaussian.mean.double())


def concatenate(gaussians: Sequence[Gaussian]) -> Gaussian:
    """Join batches of states; a non-contextual scale is the same in all of them."""
    first = gaussians[0]
    if len(gaussians) == 1:
        return first
    scale = th.cat([g.scale for g in gaussians]) if first.is_contextual else first.scale
    return first.with_scale(scale, th.cat([g.mean for g in gaussians]))


def make_projection(projection: str | Projection | None) -> Projection | None:
    """Return a projection by its name; a ``Projection`` or ``None`` as it is.

    :raises ValueError: for an unknown name.
    """
    if projection is None or isinstance(projection, Projection):
        return projection
    if projection not in PROJECTIONS:
        names = ", ".join(map(repr, PROJECTIONS))
        raise ValueError(f"projection={projection!r} is unknown: choose one of {names}, None, or pass a Projection.")
    return PROJECTIONS[projection]()
