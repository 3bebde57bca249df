"""Callbacks that record how far a policy moved in one update, for any on-policy algorithm of SB3."""

from __future__ import annotations

import copy

import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution, kl_divergence
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trl.dashboard import write_layout

__all__ = ["TrustRegionCallback"]


class TrustRegionCallback(BaseCallback):
    """Record the trust-region keys of TRPL and FixPO for SB3's PPO, A2C and sb3-contrib's TRPO.

    After every update it compares the policy that acts next with the policy that collected the last
    rollout, at every state of that rollout: ``trust_region/kl_mean`` and ``trust_region/kl_max`` are
    KL(acting ‖ old) in nats, ``trust_region/entropy`` is the mean entropy of the acting policy in nats.
    Every action space is supported. Runs of different methods can then be drawn in one figure, and TensorBoard
    shows the keys in the same dashboard.

    :param chunk_size: States per forward pass.
    :param verbose: Verbosity level, as in SB3.
    """

    def __init__(self, chunk_size: int = 4096, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.chunk_size = chunk_size
        self._chunks: list[th.Tensor | dict[str, th.Tensor]] = []
        self._old: list[Distribution] = []

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        write_layout(self.logger, ("trust_region/kl", "trust_region/entropy"))

    def _on_rollout_end(self) -> None:
        """Keep the rollout's observations and the distributions that collected it."""
        self._chunks = self._observation_chunks()
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

    def _observation_chunks(self) -> list[th.Tensor | dict[str, th.Tensor]]:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        observations = buffer.observations
        if isinstance(self.model.observation_space, spaces.Dict):
            flat = {key: buffer.to_torch(buffer.swap_and_flatten(x)) for key, x in observations.items()}
            n = next(iter(flat.values())).shape[0]
            starts = range(0, n, self.chunk_size)
            return [{key: x[i : i + self.chunk_size] for key, x in flat.items()} for i in starts]
        # A generator that was opened (``buffer.get``) has flattened the array already.
        flat_array = observations if buffer.generator_ready else buffer.swap_and_flatten(observations)
        return list(buffer.to_torch(flat_array).split(self.chunk_size))


def _detached(policy: ActorCriticPolicy, observations: th.Tensor | dict[str, th.Tensor]) -> Distribution:
    """Return the policy's distribution at ``observations`` in an object of its own."""
    return copy.copy(policy.get_distribution(observations))


def _joint(kl: th.Tensor) -> th.Tensor:
    """Sum the divergences of independent action dimensions; shape (batch,)."""
    return kl.sum(dim=-1) if kl.dim() > 1 else kl
