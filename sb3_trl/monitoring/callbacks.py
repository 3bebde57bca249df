"""Callbacks that record how far a policy moved in one update, for any on-policy algorithm of SB3."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution, kl_divergence
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trl.monitoring.dashboard import write_layout
from sb3_trl.policies.forward import actor_latent
from sb3_trl.policies.sequences import Sequences, by_sequence
from sb3_trl.rollouts.rollout import rollout_from_buffer
from sb3_trl.rollouts.sequences import recurrent_rollout
from sb3_trl.table import chunks

__all__ = ["TrustRegionCallback"]


class TrustRegionCallback(BaseCallback):
    """Record the trust-region keys of TRPL and FixPO for SB3's PPO, A2C and sb3-contrib's TRPO.

    After every update it compares the policy that acts next with the policy that collected the last
    rollout, at every state of that rollout: ``trust_region/kl_mean`` and ``trust_region/kl_max`` are
    KL(acting ‖ old) in nats, ``trust_region/entropy`` is the mean entropy of the acting policy in nats.
    Every action space is supported. Recurrent policies replay every episode, each with its own hidden states; policies
    that need something else than observations, as sb3-contrib's masked ones, are not supported. Runs of different
    methods can then be drawn in one figure, and TensorBoard shows the keys in the same dashboard.

    :param chunk_size: States per forward pass.
    :param verbose: Verbosity level, as in SB3.
    """

    def __init__(self, chunk_size: int = 4096, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.chunk_size = chunk_size
        self._chunks: list[Any] = []
        self._old: list[Distribution] = []
        self._watched: BaseAlgorithm | None = None

    def _init_callback(self) -> None:
        if not _has_distributions(self.model):
            raise ValueError(
                "TrustRegionCallback compares what a policy does at the states of a rollout: it watches PPO, A2C, TRPO "
                f"and their relatives with an ActorCriticPolicy, not {type(self.model).__name__} with "
                f"{type(self.model.policy).__name__}. Leave the callback out."
            )
        if self._watched is not self.model:  # the last rollout was another model's
            self._watched, self._chunks = self.model, []

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        write_layout(self.logger, ("trust_region/kl", "trust_region/entropy"))

    def _on_rollout_end(self) -> None:
        """Keep the rollout's observations and the distributions that collected it."""
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        if isinstance(self.model.policy, RecurrentActorCriticPolicy):
            whole = by_sequence(recurrent_rollout(buffer).observations)
            self._chunks = [whole.part(rows) for rows in whole.split(whole.rows_for(self.chunk_size))]
        else:
            self._chunks = list(chunks(rollout_from_buffer(buffer).observations, self.chunk_size))
        self._old = self._distributions()

    def _on_rollout_start(self) -> None:
        """Compare, now that the update is over."""
        if not self._chunks:
            return
        new = self._distributions()
        kl = th.cat([_joint(kl_divergence(p, q)) for p, q in zip(new, self._old, strict=True)])
        self.logger.record("trust_region/kl_mean", kl.mean().item())
        self.logger.record("trust_region/kl_max", kl.max().item())
        entropies = [entropy for p in new if (entropy := p.entropy()) is not None]
        if len(entropies) == len(new):
            self.logger.record("trust_region/entropy", th.cat(entropies).mean().item())

    def _distributions(self) -> list[Distribution]:
        policy = self.model.policy
        assert isinstance(policy, ActorCriticPolicy)
        policy.set_training_mode(False)
        with th.no_grad():
            # SB3's policies refill one distribution object: keep a fresh one for every chunk.
            return [_detached(policy, chunk) for chunk in self._chunks]


def _has_distributions(model: BaseAlgorithm) -> bool:
    """Return whether observations are all that the model's policy needs to act."""
    if not isinstance(model, OnPolicyAlgorithm) or not isinstance(model.policy, ActorCriticPolicy):
        return False
    if isinstance(model.policy, RecurrentActorCriticPolicy):
        return True
    try:
        inspect.signature(model.policy.get_distribution).bind(None)
    except TypeError:
        return False
    return True


def _detached(policy: ActorCriticPolicy, observations: Any) -> Distribution:
    """Return the policy's distribution at ``observations`` in an object of its own."""
    if isinstance(observations, Sequences):
        return copy.copy(policy._get_action_dist_from_latent(actor_latent(policy, observations)))
    return copy.copy(policy.get_distribution(observations))


def _joint(kl: th.Tensor) -> th.Tensor:
    """Sum the divergences of independent action dimensions; shape (batch,)."""
    return kl.sum(dim=-1) if kl.dim() > 1 else kl
