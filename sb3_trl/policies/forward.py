"""Passes through the networks of an actor-critic policy, each through no more of it than it needs."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from torch import nn

from sb3_trl.policies.masks import apply_masks, unmasked

__all__ = ["DistributionAndValues", "ForwardPass", "actor_latent", "features_of", "latents"]


class ForwardPass(nn.Module):
    """One method of a policy as a module, so that ``torch.func`` can call it with other parameters.

    :param policy: The policy.
    :param method: Name of a method that maps observations to tensors.
    """

    def __init__(self, policy: ActorCriticPolicy, method: str) -> None:
        super().__init__()
        self.policy = policy
        self.method = method

    def forward(self, observations: Any) -> Any:
        """Return what the policy's method returns."""
        return getattr(self.policy, self.method)(observations)


class DistributionAndValues(nn.Module):
    """The action distribution and the values ``(batch, 1)`` of any actor-critic policy of SB3.

    Layers that actor and critic share are passed once.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: Any, actor_features: th.Tensor | None = None) -> tuple[Any, th.Tensor]:
        """Return the distribution and the values at a batch of observations.

        :param observations: The observations.
        :param actor_features: What the actor's features extractor makes of them, if that is known.
        """
        observations, masks = unmasked(observations)
        latent_pi, latent_vf = latents(self.policy, observations, actor_features)
        distribution = self.policy._get_action_dist_from_latent(latent_pi)
        if masks is not None:
            distribution = apply_masks(distribution, masks)
        return distribution, self.policy.value_net(latent_vf)


def latents(
    policy: ActorCriticPolicy, observations: Any, actor_features: th.Tensor | None = None
) -> tuple[th.Tensor, th.Tensor]:
    """Return the last hidden layers of actor and critic, passing once through what they share.

    :param policy: The policy.
    :param observations: A batch.
    :param actor_features: What the actor's features extractor makes of it, if that is known.
    """
    if actor_features is not None:
        critic_features = actor_features
        if not policy.share_features_extractor:
            critic_features = features_of(policy, observations, critic=True)
        extractor = policy.mlp_extractor
        return extractor.forward_actor(actor_features), extractor.forward_critic(critic_features)
    features = policy.extract_features(observations)
    if isinstance(features, tuple):
        pi_features, vf_features = features
        return policy.mlp_extractor.forward_actor(pi_features), policy.mlp_extractor.forward_critic(vf_features)
    return policy.mlp_extractor(features)


def actor_latent(policy: ActorCriticPolicy, observations: Any) -> th.Tensor:
    """Return the last hidden layer of the actor alone."""
    return policy.mlp_extractor.forward_actor(features_of(policy, observations, critic=False))


def features_of(policy: ActorCriticPolicy, observations: Any, critic: bool) -> th.Tensor:
    """Return the features of the critic or of the actor alone; of both, where a policy extracts them in its own way."""
    if type(policy).extract_features is ActorCriticPolicy.extract_features:
        extractor = policy.vf_features_extractor if critic else policy.pi_features_extractor
        return BasePolicy.extract_features(policy, observations, extractor)
    features = policy.extract_features(observations)
    return features[critic] if isinstance(features, tuple) else features
