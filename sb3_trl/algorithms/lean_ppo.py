"""SB3's PPO (Schulman et al., 2017) with this package's rollouts and compiled steps: the same learning, sooner."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trl.algorithms.base import TrustRegionAlgorithm
from sb3_trl.algorithms.losses import Weights, clipped_surrogate_loss, clipped_values, normalize, value_loss
from sb3_trl.policies.action_parameters import ActionsAndValues
from sb3_trl.rollouts.rollout import Rollout
from sb3_trl.schedules import as_schedule
from sb3_trl.steps.gradient_step import Loss
from sb3_trl.steps.running_means import RunningMeans

__all__ = ["LeanPPO"]


class LeanPPO(TrustRegionAlgorithm, PPO):
    """SB3's ``PPO``, argument for argument and, given the same minibatches, number for number.

    For baselines that cost minutes: it collects rollouts, compiles gradient steps and joins a ``SeedBatch`` as the
    other algorithms of this package do. With ``target_kl``, gSDE, or a policy or buffer that does in its own way
    what SB3's do in an update, updates are SB3's own. ``TrustRegionCallback`` logs its trust region, as PPO's.

    :param policy: As in SB3.
    :param env: As in SB3.
    :param learning_rate: As in SB3, or ``"lin_<x>"``; also ``clip_range`` and ``clip_range_vf``.
    :param n_steps: As in SB3.
    :param batch_size: As in SB3.
    :param n_epochs: As in SB3.
    :param gamma: As in SB3.
    :param gae_lambda: As in SB3.
    :param clip_range: As in SB3.
    :param clip_range_vf: As in SB3.
    :param normalize_advantage: As in SB3.
    :param ent_coef: As in SB3.
    :param vf_coef: As in SB3.
    :param max_grad_norm: As in SB3.
    :param use_sde: As in SB3.
    :param sde_sample_freq: As in SB3.
    :param rollout_buffer_class: As in SB3.
    :param rollout_buffer_kwargs: As in SB3.
    :param target_kl: As in SB3.
    :param stats_window_size: As in SB3.
    :param tensorboard_log: As in SB3.
    :param policy_kwargs: As in SB3.
    :param verbose: As in SB3.
    :param seed: As in SB3.
    :param device: As in SB3.
    :param compile: Compile the training step, as in ``FixPO``.
    :param _init_setup_model: As in SB3.
    """

    name: ClassVar[str] = "LeanPPO"
    log_prefixes: ClassVar[tuple[str, ...]] = ()
    #: Whose evaluation of actions, and which buffers, updates take the place of.
    _known_policy: ClassVar[type[ActorCriticPolicy]] = ActorCriticPolicy
    _known_buffers: ClassVar[tuple[type[RolloutBuffer], ...]] = (RolloutBuffer, DictRolloutBuffer)

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | str | Schedule = 0.2,
        clip_range_vf: float | str | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        compile: bool | Literal["auto"] = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,  # type: ignore[arg-type]
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,  # type: ignore[arg-type]
            clip_range_vf=clip_range_vf,  # type: ignore[arg-type]
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.compile = compile
        if _init_setup_model:
            self._setup_model()

    def train(self) -> None:
        """Update the policy with the rollout just collected (Algorithm 1)."""
        if not self._can_update():
            super().train()
            return
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        rollout, stats = self._rollout(), RunningMeans()

        forward, optimizer = ActionsAndValues(self.policy), self.policy.optimizer
        self._take_steps("update", self._loss, forward, optimizer, (rollout, self._weights()), self.n_epochs, stats)
        self._check_finite_parameters()

        self._n_updates += self.n_epochs
        self._log_update(rollout, stats)

    def _weights(self) -> Weights:
        """Return the weights of the loss's terms and the clip ranges, as they are now."""
        clip_range_vf = None if self.clip_range_vf is None else self._scalar(self._now("clip_range_vf"))
        return Weights(
            self._scalar(self.vf_coef),
            self._scalar(self.ent_coef),
            clip_range=self._scalar(self._now("clip_range")),
            clip_range_vf=clip_range_vf,
        )

    def _loss(self, forward: Any, batch: Rollout, weights: Weights) -> Loss:
        """Return −(L^CLIP − c₁·L^VF + c₂·S), the objective of eq. 9."""
        new, values = forward(batch.observations)
        log_prob = new.log_prob(batch.actions)
        advantages = normalize(batch.advantages) if self.normalize_advantage else batch.advantages
        surrogate, clip_fraction = clipped_surrogate_loss(log_prob, batch.old_log_prob, advantages, weights.clip_range)
        clipped = clipped_values(values.flatten(), batch.old_values, weights.clip_range_vf)
        critic_loss = value_loss(clipped, batch.returns)
        entropy_loss = -new.entropy().mean()
        loss = surrogate + weights.entropy * entropy_loss + weights.value * critic_loss
        log_ratio = log_prob - batch.old_log_prob
        return loss, {
            "policy_gradient_loss": surrogate,
            "value_loss": critic_loss,
            "entropy_loss": entropy_loss,
            "clip_fraction": clip_fraction,
            "approx_kl": (log_ratio.exp() - 1 - log_ratio).mean(),
            "loss": loss,
        }

    # --- plumbing ---

    def _log_update(self, rollout: Rollout, stats: RunningMeans) -> None:
        n_minibatches = self._n_minibatches(rollout)
        # As SB3: of the divergence the last epoch's mean, of the loss the last minibatch's.
        self._log("train", stats.read(last={"approx_kl": n_minibatches, "loss": 1}))
        self._log_explained_variance(rollout)
        self._log_policy()
        for name in ("clip_range", "clip_range_vf"):
            if getattr(self, name) is not None:
                self.logger.record(f"train/{name}", self._now(name))

    def _setup_model(self) -> None:
        for name in ("clip_range", "clip_range_vf"):  # which become schedules, as in SB3
            value = getattr(self, name)
            if isinstance(value, str):
                setattr(self, name, as_schedule(name, value))
        super()._setup_model()

    def _check_minibatch_size(self, warns: bool = True) -> None:
        """Take minibatches larger than the rollout, as SB3 does: they hold all of it."""

    def _can_compile(self) -> bool:
        return self._can_update()

    def _can_update(self) -> bool:
        """Return whether this class's update does what SB3's would, as things are."""
        evaluates_as_sb3 = type(self.policy).evaluate_actions is self._known_policy.evaluate_actions
        samples_as_sb3 = type(self.rollout_buffer) in self._known_buffers
        is_pure = evaluates_as_sb3 and ActionsAndValues(self.policy).is_pure and not self.use_sde
        return self.target_kl is None and samples_as_sb3 and is_pure
