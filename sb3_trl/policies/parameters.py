"""Which parameters of a policy something depends on, and what its layers keep besides."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_trl.policies.sequences import one_step
from sb3_trl.random_state import preserved_random_state

__all__ = ["parameters_behind", "statistics"]


def parameters_behind(
    policy: ActorCriticPolicy, function: Callable[[Any], th.Tensor], extractor: nn.Module
) -> list[nn.Parameter]:
    """Return the parameters of a policy that a scalar function of an observation depends on, frozen ones among them.

    They are found by a look at the gradient at one observation of the space, and those of ``extractor``, whose code may
    choose by the observation what it uses, or pass an encoder without gradient, belong together.

    :param policy: The policy.
    :param function: Maps a batch of observations to a scalar.
    :param extractor: The features extractor that it uses.
    """
    parameters = list(policy.parameters())
    was_training, were_trained = policy.training, [p.requires_grad for p in parameters]
    policy.train(False)  # one observation has no batch statistics
    try:
        for p in parameters:
            p.requires_grad_(p.is_floating_point())
        with th.enable_grad(), preserved_random_state(policy.device):
            output = function(one_step(policy, policy.obs_to_tensor(_sample(policy.observation_space))[0]))
        wanted = [p for p in parameters if p.requires_grad]
        gradients = th.autograd.grad(output, wanted, allow_unused=True) if output.requires_grad else []
    finally:
        policy.train(was_training)
        for p, was_trained in zip(parameters, were_trained, strict=True):
            p.requires_grad_(was_trained)
    reached = {id(p) for p, gradient in zip(wanted, gradients, strict=False) if gradient is not None}
    reached |= {id(p) for p in extractor.parameters()}
    return [p for p in parameters if id(p) in reached]


def statistics(policy: nn.Module) -> list[th.Tensor]:
    """Return what a policy's layers keep besides parameters, such as the running means of a batch normalisation."""
    return [buffer for buffer in policy.buffers() if buffer.is_floating_point()]


def _sample(space: spaces.Space) -> Any:
    """Return an observation of the space, always the same, without drawing from anybody's random numbers."""
    own = copy.deepcopy(space)
    own.seed(0)
    return own.sample()
