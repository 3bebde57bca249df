"""Likeliest actions without the distribution: what ``predict(observation, deterministic=True)`` returns, sooner."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import Tensor, nn

from sb3_trl.policies.actor_critic import MlpPolicy, SingleOptimizerPolicy
from sb3_trl.policies.categorical import ProjectedCategoricalDistribution
from sb3_trl.policies.direct import has_hooks
from sb3_trl.policies.distributions import ProjectedGaussianDistribution

__all__ = ["likeliest_actions"]

_POLICIES = (MlpPolicy, SingleOptimizerPolicy, ActorCriticPolicy)

#: exp(x) is a positive float32 above it.
_SMALLEST_LOG_STD = -87.0

#: Methods that ``predict`` calls, of which an instance may have its own.
_METHODS = frozenset(
    {
        "predict",
        "_predict",
        "get_distribution",
        "_get_action_dist_from_latent",
        "obs_to_tensor",
        "set_training_mode",
    }
)


def likeliest_actions(policy: Any, observation: Any) -> np.ndarray | None:
    """Return what ``policy.predict(observation, deterministic=True)`` does, ``None`` where only that knows.

    SB3 visits every layer to end training, and makes a distribution of which it takes the mode. Here the networks of
    SB3 and of this package, for observations that are vectors, are passed through and no more: half the time or less.

    :param policy: Any.
    :param observation: One, or those of n environments. What SB3 refuses is left to it.
    """
    rows = _rows(policy, observation) if _is_known(policy) else None
    if rows is None:
        return None
    if policy.training:
        policy.set_training_mode(False)
    with th.no_grad():
        features = th.as_tensor(rows, dtype=th.float32)
        if not policy.action_net.weight.is_cpu:
            features = features.to(policy.action_net.weight.device)
        outputs = policy.action_net(policy.mlp_extractor.forward_actor(features))
        chosen = _mode(policy.action_dist, policy, outputs)
    if chosen is None:
        return None
    space = policy.action_space
    actions = chosen.cpu().numpy().reshape(-1, *space.shape)
    if isinstance(space, spaces.Box):
        actions = np.clip(actions, space.low, space.high)
    return actions if rows.ndim == observation.ndim else actions.squeeze(axis=0)


def _is_known(policy: Any) -> bool:
    """Return whether nothing of the policy is somebody else's, or acts differently in training."""
    return (
        type(policy) in _POLICIES
        and type(policy.pi_features_extractor) is FlattenExtractor
        and type(policy.mlp_extractor) is MlpExtractor
        and type(policy.action_net) is nn.Linear
        and not has_hooks(policy.pi_features_extractor)
        and not policy.squash_output
        and _METHODS.isdisjoint(vars(policy))
    )


def _rows(policy: Any, observation: Any) -> np.ndarray | None:
    """Return vectors as a table of their own, ``None`` for anything else."""
    space = policy.observation_space
    if type(observation) is not np.ndarray or type(space) is not spaces.Box or len(space.shape) != 1:
        return None
    if observation.ndim not in (1, 2) or observation.shape[-1:] != space.shape or not len(observation):
        return None
    return np.array(observation, ndmin=2)


@singledispatch
def _mode(distribution: Distribution, policy: Any, outputs: Tensor) -> Tensor | None:
    """Return the mode of the distribution with these outputs of the network, ``None`` where SB3 may refuse them."""
    return None


@_mode.register
def _(distribution: ProjectedGaussianDistribution, policy: Any, outputs: Tensor) -> Tensor:
    return outputs


@_mode.register
def _(distribution: ProjectedCategoricalDistribution, policy: Any, outputs: Tensor) -> Tensor:
    return distribution.actions_from_params(outputs, deterministic=True)


@_mode.register
def _(distribution: DiagGaussianDistribution, policy: Any, outputs: Tensor) -> Tensor | None:
    return outputs if _are_numbers(outputs) and _array(policy.log_std).min() > _SMALLEST_LOG_STD else None


@_mode.register
def _(distribution: CategoricalDistribution, policy: Any, outputs: Tensor) -> Tensor | None:
    if not _are_numbers(outputs):
        return None
    # In the steps of torch's Categorical: two actions may have equal probabilities, but not quite equal logits.
    return (outputs - outputs.logsumexp(-1, keepdim=True)).softmax(-1).argmax(-1)


def _are_numbers(x: Tensor) -> bool:
    return not np.isnan(_array(x)).any()


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()
