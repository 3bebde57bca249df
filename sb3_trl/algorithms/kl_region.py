"""The trust region of one FixPO update: a divergence, its statistic over states, and the bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch as th

from sb3_trl.penalty import kl_statistic
from sb3_trl.policies.action_parameters import ActionParameters

__all__ = ["Direction", "KLRegion", "divergence"]

Direction: TypeAlias = Literal["old_new", "new_old"]


def divergence(new: ActionParameters, old: ActionParameters, direction: Direction) -> th.Tensor:
    """Return KL(π_old ‖ π) or KL(π ‖ π_old) in nats, differentiable; shape ``(n,)``."""
    return old.kl(new) if direction == "old_new" else new.kl(old)


@dataclass(frozen=True)
class KLRegion:
    """The policies whose divergence from the old one is at most ε_KL, at every state of a batch or on average.

    :param bound: ε_KL, nats.
    :param statistic: ``"max"`` or ``"mean"`` over states.
    :param direction: ``"old_new"`` for KL(π_old ‖ π), ``"new_old"`` for KL(π ‖ π_old).
    """

    bound: float
    statistic: Literal["max", "mean"]
    direction: Direction

    def divergence(self, new: ActionParameters, old: ActionParameters) -> th.Tensor:
        """Return what is bounded, in float64, in which it is compared with the bound; shape ``(n,)``."""
        return divergence(new.double(), old.double(), self.direction)

    def evaluate(self, forward: Any, observations: Any, old: ActionParameters, tasks: Any = None) -> th.Tensor:
        """Return it for what a forward pass says of some states, whatever their tasks are."""
        return self.divergence(forward(observations), old)

    def statistic_of(self, kl: th.Tensor) -> th.Tensor:
        """Return the largest or the mean of some states' divergences, without gradient."""
        return kl_statistic(kl, self.statistic)

    def contains(self, kl: th.Tensor) -> bool:
        """Return whether a policy with these divergences is inside; one whose divergences are not finite is not."""
        return bool(self.statistic_of(kl) <= self.bound)

    def is_clean(self, kl: th.Tensor) -> bool:
        """Return whether states with these divergences need no step.

        :raises FloatingPointError: if one is not finite: no step can mend that.
        """
        if not bool(kl.isfinite().all()):
            raise FloatingPointError
        return self.contains(kl)

    def largest(self, acting: ActionParameters, old: ActionParameters) -> dict[str, float]:
        """Return the largest divergence of any state, by its name in the log."""
        return {"kl_max": self.divergence(acting, old).max().item()}

    def count_outside(self, steps: Sequence[th.Tensor], n_tasks: int | None) -> th.Tensor:
        """Return for each task how often its statistic was beyond the bound.

        :param steps: The statistics in several minibatches, scalars or of K tasks or more.
        :param n_tasks: K, ``None`` for 1.
        """
        if not steps:
            return th.zeros(n_tasks or 1)
        return (th.stack(list(steps)) > self.bound).view(len(steps), -1).sum(0)

    def measure(self, acting: ActionParameters, old: ActionParameters) -> dict[str, float]:
        """Return the trust-region log of the acting policy at some states, measured in float64."""
        acting, old = acting.double(), old.double()
        kl, entropy = acting.kl(old), acting.entropy()
        values = {
            "kl_mean": kl.mean(),
            "kl_max": kl.max(),
            "violation_fraction": (self.divergence(acting, old) > self.bound).double().mean(),
        }
        if entropy is not None:
            values["entropy"] = entropy.mean()
        return {key: value.item() for key, value in values.items()}
