"""A trust region that holds for the policy that acts, not only for its projection."""

from __future__ import annotations

from typing import Any

import torch as th

from sb3_trl.algorithms.enforcement import step_until_clean
from sb3_trl.algorithms.trust_region import TrustRegion
from sb3_trl.policies.actor_critic import TRPLPolicy
from sb3_trl.policies.forward import ForwardPass
from sb3_trl.policies.sequences import largest
from sb3_trl.steps.gradient_step import EagerStep, Loss
from sb3_trl.table import Table

__all__ = ["step_inside"]

#: Steps go towards a region this much smaller: into the bounds, not up to them.
_TARGET = 0.8
_BATCH_SIZE = 1024


def step_inside(
    policy: TRPLPolicy,
    learning_rate: float,
    states: Table,
    max_steps: int,
    max_grad_norm: float | None,
) -> int:
    """Step on the penalty alone until the policy obeys the bounds at every state, and return the number of steps.

    :param policy: Changed in place.
    :param learning_rate: The actor's.
    :param states: Observations, and the trust region there.
    :param max_steps: Stop after so many steps, inside or not.
    :param max_grad_norm: Gradient clipping, ``None`` for none.
    """
    actor, size = ForwardPass(policy, "predicted"), states.rows_for(_BATCH_SIZE)
    # Moments of its own: those of the surrogate's gradients, which are larger, would make the steps tiny.
    optimizer = policy.make_optimizer(policy.actor_parameters(), learning_rate)

    @th.no_grad()
    def is_outside(index: th.Tensor) -> th.Tensor:
        observations, region = states.part(states.at(index).rows)
        return largest((~region.is_inside(actor(observations))).double(), observations)

    step = EagerStep(actor, _distance, optimizer, max_grad_norm)
    steps, _ = step_until_clean(
        states, size, is_outside, lambda outside: not bool(outside.any()), step, max_steps, shuffle=False
    )
    return steps


def _distance(forward: Any, observations: Any, region: TrustRegion) -> Loss:
    """The distance to the projection, averaged over the states that are projected."""
    new = forward(observations)
    assert region.projection is not None
    penalty = region.projection.penalty(new, region.scaled(_TARGET).project(new))
    return penalty.sum() / (penalty.detach() > 0).sum().clamp(min=1), {}
