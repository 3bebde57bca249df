"""The trust region of one update: the old policy and its bounds at every state, and what is measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial, singledispatch
from typing import Any

import torch as th

from sb3_trl.projections import (
    Categorical,
    Distribution,
    Gaussian,
    Projection,
    TrustRegionLayer,
)
from sb3_trl.table import Shared, Table, joined, table

__all__ = ["TrustRegion", "concatenate", "reachable_entropy"]


@dataclass(frozen=True)
class TrustRegion:
    """Where the policy may go in one update, at n states.

    :param layer: Projection and entropy control.
    :param old: The policy that collected the data, n states.
    :param bounds: As many as ``old.bound_names``, scalar tensors or ``(n,)``.
    :param entropy_bound: β in nats, a scalar tensor or ``(n,)``, ``None`` without entropy control.
    """

    layer: TrustRegionLayer
    old: Distribution
    bounds: tuple[th.Tensor, ...]
    entropy_bound: th.Tensor | None = None

    @property
    def projection(self) -> Projection | None:
        """The projection, ``None`` if there is only entropy control or nothing."""
        return self.layer.projection

    @property
    def named_bounds(self) -> dict[str, th.Tensor]:
        """The bounds by name."""
        return dict(zip(self.old.bound_names, self.bounds, strict=True))

    def project(self, new: Any) -> Any:
        """Return π̃."""
        return self.layer(new, self.old, entropy_bound=self.entropy_bound, **self.named_bounds)

    def scaled(self, factor: float) -> TrustRegion:
        """Return the trust region with ``factor`` times the bounds."""
        return replace(self, bounds=tuple(factor * bound for bound in self.bounds))

    def is_inside(self, policy: Any) -> th.Tensor:
        """Return for each state whether ``policy`` obeys the bounds, measured in float64; shape ``(n,)``."""
        if self.projection is None:
            return th.ones(policy.batch_shape, dtype=th.bool, device=self.bounds[0].device)
        return self.projection.is_inside(policy.double(), self.old.double(), **self.named_bounds)

    def measure(self, policy: Any) -> dict[str, float]:
        """Return the trust-region log of the acting policy, measured in float64."""
        policy, old = policy.double(), self.old.double()
        divergence = policy.kl(old)
        values: dict[str, Any] = {"kl_mean": divergence.mean(), "kl_max": divergence.max()}
        values["entropy"] = policy.entropy().mean()
        values["violation_fraction"] = 1 - self.is_inside(policy).double().mean()
        if self.projection is not None:
            distances = self.projection.distance(policy, old)
            for (name, bound), distance in zip(self.named_bounds.items(), distances, strict=True):
                values[name] = bound.mean()
                part = name.removesuffix("_bound")
                if part != "kl":  # which is there already
                    values |= {f"{part}_distance_mean": distance.mean(), f"{part}_distance_max": distance.max()}
            if self.projection.measures_kl:
                values["kl_bound"] = sum(self.bounds).mean()  # type: ignore[union-attr]
        if self.entropy_bound is not None:
            values["entropy_bound"] = self.entropy_bound.mean()
        return {key: float(value) for key, value in values.items()}


@table.register
def _(data: Gaussian) -> Table:
    scale = table(data.scale) if data.is_contextual else table(Shared(data.scale))
    return joined([table(data.mean), scale], partial(_gaussian, data.is_diagonal), (Gaussian, data.is_diagonal))


@table.register
def _(data: Categorical) -> Table:
    return Table((data.log_probs,), (), lambda rows, shared: Categorical(rows[0]), Categorical)


@table.register
def _(data: TrustRegion) -> Table:
    bounds = list(map(_bound, data.bounds))
    entropy = table(None) if data.entropy_bound is None else _bound(data.entropy_bound)

    def region(parts: Sequence[Any]) -> TrustRegion:
        old, *bounds, entropy_bound = parts
        return TrustRegion(data.layer, old, tuple(bounds), entropy_bound)

    return joined([table(data.old), *bounds, entropy], region, TrustRegion)


def _bound(bound: th.Tensor) -> Table:
    return table(bound) if bound.dim() else table(Shared(bound))


def _gaussian(is_diagonal: bool, parts: Sequence[th.Tensor]) -> Gaussian:
    mean, scale = parts
    return Gaussian(mean, std=scale) if is_diagonal else Gaussian(mean, scale_tril=scale)


def reachable_entropy(bound: float, policy: Distribution) -> th.Tensor:
    """Return a bound on entropies as a float64 tensor; where masks leave a state less than that, what they leave it.

    :param bound: β in nats.
    :param policy: At n states.
    :return: A scalar, or ``(n,)`` where actions are masked.
    """
    if isinstance(policy, Categorical) and policy.impossible is not None:
        return policy.largest_entropy().double().clamp(max=bound)
    return th.as_tensor(bound, dtype=th.float64, device=policy.tensor.device)


@singledispatch
def concatenate(first: Distribution, others: Sequence[Any]) -> Any:
    """Join batches of states: the first, and others of its kind."""
    raise TypeError(f"A {type(first).__name__} has no batches that are known here.")


@concatenate.register
def _(first: Gaussian, others: Sequence[Gaussian]) -> Gaussian:
    """A scale that does not depend on the state is the same in all of them."""
    if not others:
        return first
    batches = [first, *others]
    scale = th.cat([g.scale for g in batches]) if first.is_contextual else first.scale
    return first.with_scale(scale, th.cat([g.mean for g in batches]))


@concatenate.register
def _(first: Categorical, others: Sequence[Categorical]) -> Categorical:
    return Categorical(th.cat([c.log_probs for c in (first, *others)])) if others else first
