"""Passes through the networks of an actor-critic policy, each through no more of it than it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from torch import nn

from sb3_trl.policies.masks import apply_masks, unmasked
from sb3_trl.policies.sequences import Sequences, replay

__all__ = [
    "DistributionAndValues",
    "Extracted",
    "ForwardPass",
    "actor_latent",
    "critic_latent",
    "features_of",
    "latents",
]


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

    def forward(self, observations: Any) -> tuple[Any, th.Tensor]:
        """Return the distribution and the values at a batch of observations."""
        observations, masks = unmasked(observations)
        latent_pi, latent_vf = latents(self.policy, observations)
        distribution = self.policy._get_action_dist_from_latent(latent_pi)
        if masks is not None:
            distribution = apply_masks(distribution, masks)
        return distribution, self.policy.value_net(latent_vf)


class Extracted(NamedTuple):
    """Observations of which it is known what the actor's features extractor makes of them."""

    observations: Any
    actor_features: th.Tensor


def latents(policy: ActorCriticPolicy, observations: Any) -> tuple[th.Tensor, th.Tensor]:
    """Return the last hidden layers of actor and critic, passing once through what they share."""
    if isinstance(observations, Sequences):
        return _latents_of_sequences(policy, observations)
    if isinstance(observations, Extracted):
        return _latents_of_extracted(policy, observations)
    features = policy.extract_features(observations)
    if isinstance(features, tuple):
        pi_features, vf_features = features
        return policy.mlp_extractor.forward_actor(pi_features), policy.mlp_extractor.forward_critic(vf_features)
    return policy.mlp_extractor(features)


def actor_latent(policy: Any, observations: Any) -> th.Tensor:
    """Return the last hidden layer of the actor alone."""
    if isinstance(observations, Sequences):
        features = features_of(policy, observations.observations, critic=False)
        return policy.mlp_extractor.forward_actor(replay(policy.lstm_actor, features, observations, observations.pi))
    return policy.mlp_extractor.forward_actor(features_of(policy, observations, critic=False))


def critic_latent(policy: Any, observations: Any) -> th.Tensor:
    """Return the last hidden layer of the critic alone."""
    if not isinstance(observations, Sequences):
        return policy.mlp_extractor.forward_critic(features_of(policy, observations, critic=True))
    features = features_of(policy, observations.observations, critic=True)
    seen = _seen_by_critic(
        policy, features, observations, lambda: replay(policy.lstm_actor, features, observations, observations.pi)
    )
    return policy.mlp_extractor.forward_critic(seen)


def _latents_of_extracted(policy: ActorCriticPolicy, extracted: Extracted) -> tuple[th.Tensor, th.Tensor]:
    observations, features = extracted
    critic_features = features
    if not policy.share_features_extractor:
        critic_features = features_of(policy, observations, critic=True)
    return policy.mlp_extractor.forward_actor(features), policy.mlp_extractor.forward_critic(critic_features)


def _latents_of_sequences(policy: Any, sequences: Sequences) -> tuple[th.Tensor, th.Tensor]:
    """What ``RecurrentActorCriticPolicy.evaluate_actions`` passes through, without its loop over time."""
    features = policy.extract_features(sequences.observations)
    pi_features, vf_features = features if isinstance(features, tuple) else (features, features)
    latent_pi = replay(policy.lstm_actor, pi_features, sequences, sequences.pi)
    seen = _seen_by_critic(policy, vf_features, sequences, lambda: latent_pi)
    return policy.mlp_extractor.forward_actor(latent_pi), policy.mlp_extractor.forward_critic(seen)


def _seen_by_critic(
    policy: Any, features: th.Tensor, sequences: Sequences, by_actor: Callable[[], th.Tensor]
) -> th.Tensor:
    """Return what the critic's layers see: its LSTM's output, the actor's, or no LSTM's.

    :param by_actor: Returns what the actor's LSTM makes of the sequences.
    """
    if policy.lstm_critic is not None:
        return replay(policy.lstm_critic, features, sequences, sequences.vf)
    return by_actor().detach() if policy.shared_lstm else policy.critic(features)


def features_of(policy: ActorCriticPolicy, observations: Any, critic: bool) -> th.Tensor:
    """Return the features of the critic or of the actor alone; of both, where a policy extracts them in its own way."""
    if type(policy).extract_features is ActorCriticPolicy.extract_features:
        extractor = policy.vf_features_extractor if critic else policy.pi_features_extractor
        return BasePolicy.extract_features(policy, observations, extractor)
    features = policy.extract_features(observations)
    return features[critic] if isinstance(features, tuple) else features
