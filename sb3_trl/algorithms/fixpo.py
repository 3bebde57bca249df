"""FixPO: KL-penalised policy optimisation with a fixup phase (Zentner et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trl.algorithms.arguments import check_fixpo
from sb3_trl.algorithms.base import TrustRegionAlgorithm
from sb3_trl.algorithms.enforcement import Checkpoint, refined, roll_back, step_until_clean
from sb3_trl.algorithms.kl_region import KLRegion, divergence
from sb3_trl.algorithms.losses import Weights, clipped_values, normalize, surrogate_loss, value_loss
from sb3_trl.algorithms.masking import ActionMasking
from sb3_trl.algorithms.tasks import ManyTasks
from sb3_trl.penalty import BetaDual, kl_penalty, kl_statistic
from sb3_trl.policies.action_parameters import ActionParameters, Actions, ActionsAndValues, actor_parameters, join
from sb3_trl.policies.parameters import statistics
from sb3_trl.rollouts.rollout import Rollout, reward_scale
from sb3_trl.steps.evaluation import Evaluation
from sb3_trl.steps.gradient_step import EagerStep, Loss
from sb3_trl.steps.running_means import RunningMeans
from sb3_trl.table import Table

__all__ = ["FixPO"]


class FixPO(ManyTasks, ActionMasking, TrustRegionAlgorithm):
    """Fixup Policy Optimization (Zentner et al., 2023, https://arxiv.org/abs/2312.05405), for any action space.

    Primary phase: −E[π(a|s)/π_old(a|s)·Â] + c_v·L_VF + sg(β)·E[KL], and a step on β after every minibatch that
    moves the largest KL of any state towards ε_KL/C_β. Fixup phase: steps on the KL alone until no state of the
    batch has KL > ε_KL. After every update the bound holds at every state of the batch: past ``max_fixup_steps``,
    or if a divergence is not finite, a halving search back to the old policy ends the phase.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, or an ``ActorCriticPolicy``.
    :param env: The environment, or its id; its actions may be of any space that SB3's PPO takes.
    :param learning_rate: A number, ``"lin_<x>"`` or a function of the remaining progress.
    :param n_steps: Steps per environment and update.
    :param batch_size: Minibatch size of the primary phase.
    :param n_epochs: Passes over the rollout.
    :param gamma: Discount factor.
    :param gae_lambda: λ of generalised advantage estimation.
    :param kl_bound: ε_KL, nats: how far any state's action distribution may move in one update.
    :param kl_target_coef: C_β ≥ 1: the primary phase aims at ε_KL/C_β.
    :param beta_init: β at the start of training.
    :param beta_learning_rate: Adam's for β; 0 keeps β constant.
    :param kl_statistic: ``"max"``, or ``"mean"`` to bound the batch's mean divergence instead, in β's loss and in
        the fixup phase.
    :param kl_direction: ``"old_new"`` for KL(π_old ‖ π), as in the authors' code, or ``"new_old"``, as in the paper.
    :param fixup: Run the fixup phase after every ``"epoch"``, after the last one (``"update"``), or never (``"off"``;
        then nothing is guaranteed).
    :param fixup_batch_size: States per step of the fixup phase.
    :param max_fixup_steps: Cap of the gradient steps of one fixup phase.
    :param clip_range_vf: Clipping of the value function as in SB3's PPO, none by default.
    :param normalize_advantage: Normalise advantages in each minibatch; ``"task"``: among those of each task, once.
    :param raw_advantage: Where ``VecNormalize`` divides rewards by the standard deviation σ of returns, multiply
        advantages by σ, so that they are in the environment's own units, as in the authors' code, which normalises
        values and not rewards. β is in the same units, and larger by σ. Needs ``normalize_advantage=False``.
    :param tasks: How the tasks of a policy for many are told apart: ``K``, where the last K entries of the observation
        are a one among zeros; ``(first, last + 1)`` for entries elsewhere; a key of ``info``, or of ``Dict``
        observations. Each task has its own curves in the log then.
    :param beta_per_task: With ``tasks``, whether each has a β of its own; ``False`` for one β of all.
    :param ent_coef: Entropy bonus.
    :param vf_coef: c_v, weight of the value loss.
    :param max_grad_norm: Gradient clipping, ``None`` for none.
    :param compile: Compile the training step into one function. ``"auto"`` does where the steps planned repay
        the seconds it takes; what cannot be compiled trains without.
    :param use_sde: As in SB3.
    :param sde_sample_freq: As in SB3.
    :param rollout_buffer_class: As in SB3.
    :param rollout_buffer_kwargs: As in SB3.
    :param stats_window_size: As in SB3.
    :param tensorboard_log: As in SB3.
    :param policy_kwargs: As in SB3.
    :param verbose: As in SB3.
    :param seed: As in SB3.
    :param device: As in SB3.
    :param _init_setup_model: As in SB3.
    """

    name: ClassVar[str] = "FixPO"
    log_prefixes: ClassVar[tuple[str, ...]] = ("fixpo/", "trust_region/entropy", "trust_region/violation")
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = PPO.policy_aliases
    dual: BetaDual

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
        kl_bound: float = 0.5,
        kl_target_coef: float = 3.0,
        beta_init: float = 1.0,
        beta_learning_rate: float = 0.01,
        kl_statistic: Literal["max", "mean"] = "max",
        kl_direction: Literal["old_new", "new_old"] = "old_new",
        fixup: Literal["epoch", "update", "off"] = "epoch",
        fixup_batch_size: int = 1024,
        max_fixup_steps: int = 200,
        clip_range_vf: float | str | Schedule | None = None,
        normalize_advantage: bool | Literal["task"] = True,
        raw_advantage: bool = False,
        tasks: str | int | tuple[int, int] | None = None,
        beta_per_task: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float | None = 0.5,
        compile: bool | Literal["auto"] = "auto",
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,  # type: ignore[arg-type]
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.kl_bound = kl_bound
        self.kl_target_coef = kl_target_coef
        self.beta_init = beta_init
        self.beta_learning_rate = beta_learning_rate
        self.kl_statistic = kl_statistic
        self.kl_direction = kl_direction
        self.fixup = fixup
        self.fixup_batch_size = fixup_batch_size
        self.max_fixup_steps = max_fixup_steps
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.raw_advantage = raw_advantage
        self.tasks = tasks
        self.beta_per_task = beta_per_task
        self.compile = compile
        if _init_setup_model:
            self._setup_model()

    # --- Algorithm 1 ---

    def train(self) -> None:
        """Update the policy with the rollout just collected (Algorithm 1)."""
        self.policy.set_training_mode(True)
        optimizer, progress = self.policy.optimizer, self._current_progress_remaining
        self._set_learning_rate(optimizer, self.lr_schedule(progress), "learning_rate")
        rollout = self._rollout()
        old = self._action_parameters(rollout.observations)
        self.dual.set(self.kl_bound, self.kl_target_coef, self.beta_learning_rate, self._n_betas)
        region = KLRegion(self.kl_bound, self.kl_statistic, self.kl_direction)
        tasks = rollout.tasks if self.beta_per_task else None
        data = self._minibatches((rollout._replace(tasks=tasks), old, self._weights()))
        states = self._states((rollout.observations, old, tasks))
        start = Checkpoint(self.policy, optimizer)
        stats, fixups = RunningMeans(), []

        for epoch in range(self.n_epochs):
            if not self._primary_phase(data, stats, start):
                self._rollbacks += 1
                break
            if self.fixup == "epoch" or (self.fixup == "update" and epoch == self.n_epochs - 1):
                fixups += self._fixup_phase(region, states, start)
        acting = self._action_parameters(rollout.observations)
        if self.fixup != "off" and not region.contains(region.divergence(acting, old)):
            self._roll_back(region, states, start)  # a matter of rounding
            acting = self._action_parameters(rollout.observations)
        self._forget_rollout()

        self._n_updates += self.n_epochs
        self._log_update(rollout, region, (acting, old), stats, fixups)

    def _primary_phase(self, data: Table, stats: RunningMeans, start: Checkpoint) -> bool:
        """One epoch on L_θ, with a step on L_β after every minibatch (lines 5 to 7).

        Everything is put back if that leads to numbers that are not finite. Returns whether it does not.
        """
        forward, optimizer, rule = ActionsAndValues(self.policy), self.policy.optimizer, self.dual.rule
        try:
            self._take_steps("primary", self._primary_loss, forward, optimizer, data, 1, stats, **rule)
        except FloatingPointError:
            start.restore()
            return False
        return not start.restore_unless_finite()

    def _weights(self) -> Weights:
        """Return the weights of the loss's terms, and by how much values may change, as they are now."""
        clip_range = None if self.clip_range_vf is None else self._scalar(self._now("clip_range_vf"))
        return Weights(self._scalar(self.vf_coef), self._weight(self.ent_coef), clip_range_vf=clip_range)

    def _primary_loss(
        self, forward: Any, batch: Rollout, old: ActionParameters, weights: Weights, dual: th.Tensor, _: th.Tensor
    ) -> Loss:
        """Return L_θ = L_π + c_v·L_VF + sg(β)·L_KL and, as ``kl``, the statistic that L_β looks at."""
        new, values = forward(batch.observations)
        log_prob = new.log_prob(batch.actions)
        kl = divergence(new, old, self.kl_direction)
        advantages = normalize(batch.advantages) if self._normalizes_minibatches else batch.advantages
        surrogate = surrogate_loss(log_prob, batch.old_log_prob, advantages)
        clipped = clipped_values(values.flatten(), batch.old_values, weights.clip_range_vf)
        critic_loss = value_loss(clipped, batch.returns)
        loss = surrogate + weights.value * critic_loss + kl_penalty(kl, dual, batch.tasks)
        if weights.entropy is not None:
            entropy = new.entropy()
            loss = loss - weights.entropy * (-log_prob if entropy is None else entropy).mean()
        statistic = kl_statistic(kl, self.kl_statistic, batch.tasks, len(dual))
        return loss, {"policy_gradient_loss": surrogate, "value_loss": critic_loss, "kl": statistic}

    def _fixup_phase(self, region: KLRegion, states: Table, start: Checkpoint) -> list[th.Tensor]:
        """Step on the divergence alone until the trust region holds, whatever it takes (lines 8 to 15).

        In the network's evaluation mode, in which the policy acts. Returns what L_β looked at in each gradient step.
        """
        self.policy.set_training_mode(False)
        forward, optimizer = Actions(self.policy), self.policy.optimizer
        take_step = EagerStep(forward, self._fixup_loss, optimizer, self.max_grad_norm, **self.dual.rule)
        steps: list[th.Tensor] = []

        def step(data: Table, rows: Sequence[th.Tensor]) -> None:
            steps.append(take_step(data, rows)["kl"])

        size = min(states.rows_for(self.fixup_batch_size), states.n_rows)
        measure, limit = self._measurement(region, forward, states, size), self.max_fixup_steps
        _, clean = step_until_clean(states, size, measure, region.is_clean, step, limit)
        if not clean:
            self._roll_back(region, states, start)
        self.policy.set_training_mode(True)
        return steps

    def _measurement(self, region: KLRegion, forward: Actions, states: Table, size: int) -> Evaluation:
        """Return the divergence at some rows of states, float64; mostly by compiled code where steps are compiled."""

        @th.no_grad()
        def exact(index: th.Tensor) -> th.Tensor:
            return region.evaluate(forward, *states.part(states.at(index).rows))

        compiled = self._compiled_evaluation(f"divergence, {region.direction}", region.evaluate, forward, states)
        return exact if compiled is None else refined(compiled.of(forward, states, size), exact, region.bound)

    def _roll_back(self, region: KLRegion, states: Table, start: Checkpoint) -> None:
        """Move the policy back towards the old one until the trust region holds, if it does not."""
        observations, old, _ = states.part(states.rows)
        policy_state = [*self._policy_parameters, *statistics(self.policy)]

        def is_inside() -> bool:
            """Return whether the policy obeys the bound; one whose numbers are not finite does not."""
            try:
                return region.contains(region.divergence(self._action_parameters(observations), old))
            except FloatingPointError:
                return False

        self._rollbacks += roll_back(self.policy.optimizer, policy_state, start.values(policy_state), is_inside)

    def _fixup_loss(
        self, forward: Any, observations: Any, old: ActionParameters, tasks: Any, dual: th.Tensor, _: th.Tensor
    ) -> Loss:
        """Return sg(β)·L_KL."""
        kl = divergence(forward(observations), old, self.kl_direction)
        return kl_penalty(kl, dual, tasks), {"kl": kl_statistic(kl, self.kl_statistic, tasks, len(dual))}

    # --- plumbing ---

    def _rollout(self) -> Rollout:
        rollout = super()._rollout()
        scale = reward_scale(self.get_vec_normalize_env()) if self.raw_advantage else 1.0
        return rollout._replace(advantages=rollout.advantages * scale)

    def _action_parameters(self, observations: Any) -> ActionParameters:
        """Return the policy's distributions at all states of the rollout, without gradient."""
        return join(self._evaluate(Actions(self.policy), observations))

    @property
    def _n_betas(self) -> int | None:
        return self.n_tasks if self.beta_per_task else None

    def _log_update(
        self, rollout: Rollout, region: KLRegion, moved: tuple[Any, Any], stats: RunningMeans, fixups: list[th.Tensor]
    ) -> None:
        means = stats.read()
        means.pop("kl", None)  # of an update that broke off there is none
        self._log("train", means)
        self._log_explained_variance(rollout)
        self._log_measured("trust_region", region.measure, moved, rollout.tasks)
        self._log_measured("fixpo", region.largest, moved, rollout.tasks)
        primary_steps, fixup_steps = self.n_epochs * self._n_minibatches(rollout), len(fixups)
        fixup_share = fixup_steps / (primary_steps + fixup_steps)
        beta = self.dual.value.view(-1)[: self._n_betas].mean().item()
        self._log("fixpo", {"kl_bound": region.bound, "beta": beta, "rollbacks": self._rollbacks})
        self._log("fixpo", {"fixup_steps": fixup_steps, "fixup_share": fixup_share})
        if self.beta_per_task:
            self._log_by_task("fixpo/beta", self.dual.value)
            self._log_by_task("fixpo/fixup_steps", region.count_outside(fixups, self.n_tasks))
        self._log_policy()

    def _setup_model(self) -> None:
        check_fixpo(self)
        self._rollbacks = getattr(self, "_rollbacks", 0)
        super()._setup_model()
        if self.clip_range_vf is not None:
            self._schedule("clip_range_vf")  # which says what is wrong with it
        start = (self.beta_init, self.beta_learning_rate, self._n_betas)
        self.dual = BetaDual(self.kl_bound, self.kl_target_coef, *start).to(self.device)
        if self.use_sde:
            self.policy.reset_noise()
        self._policy_parameters = actor_parameters(self.policy)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_policy_parameters"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "dual"], []

    def _can_compile(self) -> bool:
        return Actions(self.policy).is_pure and not self.use_sde
