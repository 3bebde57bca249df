"""What TRPL and PAPI share: a policy that can be projected, and a critic with an optimiser of its own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_trl.algorithms.base import TrustRegionAlgorithm
from sb3_trl.algorithms.losses import value_loss
from sb3_trl.algorithms.trust_region import concatenate
from sb3_trl.policies.actor_critic import CnnPolicy, MlpPolicy, MultiInputPolicy, TRPLPolicy
from sb3_trl.policies.forward import ForwardPass
from sb3_trl.policies.parameters import statistics
from sb3_trl.rollouts.rollout import Rollout
from sb3_trl.steps.gradient_step import Loss
from sb3_trl.steps.running_means import RunningMeans

__all__ = ["ProjectingAlgorithm"]


class ProjectingAlgorithm(TrustRegionAlgorithm):
    """Base class of the algorithms that project a ``TRPLPolicy``."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: TRPLPolicy
    critic_learning_rate: float | str | Schedule
    n_critic_epochs: int

    def _fit_critic(self, rollout: Rollout, stats: RunningMeans) -> None:
        """Regress the value function onto the returns."""
        if self.policy.critic_optimizer is None:
            return
        data = (rollout.observations, rollout.returns)
        critic, optimizer = ForwardPass(self.policy, "predict_values"), self.policy.critic_optimizer
        self._take_steps("critic", _critic_loss, critic, optimizer, data, self.n_critic_epochs, stats)

    def _policy_state(self) -> list[th.Tensor]:
        """Return the tensors that decide how the policy acts: parameters, and statistics of normalising layers."""
        return [*self.policy.actor_parameters(), *statistics(self.policy)]

    def _predictions(self, rollout: Rollout) -> Any:
        """Return the network's distributions at all states of the rollout, without gradient."""
        first, *others = self._evaluate(self.policy.predicted, rollout.observations)
        return concatenate(first, others)

    def _set_scale(self, scale: th.Tensor) -> None:
        """Set a scale that does not depend on the state, unless it is frozen."""
        raw = self.policy.scale_net.raw
        if raw is None or raw.requires_grad:
            self.policy.set_scale(scale)

    def _set_learning_rates(self) -> None:
        self._set_learning_rate(self.policy.optimizer, self._policy_learning_rate(), "learning_rate")
        if self.policy.critic_optimizer is not None:
            rate = self._now("critic_learning_rate")
            self._set_learning_rate(self.policy.critic_optimizer, rate, "critic_learning_rate")

    def _policy_learning_rate(self) -> float:
        return self.lr_schedule(self._current_progress_remaining)

    def _setup_model(self) -> None:
        super()._setup_model()
        self._schedule("critic_learning_rate")  # which says what is wrong with it
        if not isinstance(self.policy, TRPLPolicy):
            raise ValueError(
                f"{self.policy_class.__name__} has no distribution that can be projected: use 'MlpPolicy', "
                "'CnnPolicy', 'MultiInputPolicy' or a subclass of sb3_trl.TRPLPolicy."
            )

    def _maybe_recommend_cpu(self, mlp_class_name: str = TRPLPolicy.__name__) -> None:
        """Say of small networks on a GPU what SB3 says of its own."""
        super()._maybe_recommend_cpu(mlp_class_name)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names = ["policy", "policy.optimizer"]
        return names if self.policy.shares_parameters else [*names, "policy.critic_optimizer"], []


def _critic_loss(forward: Any, observations: Any, returns: th.Tensor) -> Loss:
    loss = value_loss(forward(observations).flatten(), returns)
    return loss, {"value_loss": loss}
