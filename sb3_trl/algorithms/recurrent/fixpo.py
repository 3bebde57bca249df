"""FixPO for recurrent policies: the bound holds at every step of every episode, replayed from its start."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trl.algorithms.fixpo import FixPO
from sb3_trl.algorithms.kl_region import KLRegion
from sb3_trl.algorithms.recurrent.recurrence import Recurrence
from sb3_trl.policies.action_parameters import Actions
from sb3_trl.policies.sequences import largest, sums
from sb3_trl.steps.evaluation import Evaluation
from sb3_trl.table import Table

__all__ = ["RecurrentFixPO"]


class RecurrentFixPO(Recurrence, FixPO):
    """``FixPO`` for policies with a memory.

    What the policy does depends on all that it has seen in an episode. Every episode of the rollout, from its start or
    from the rollout's start, is replayed by the old and by the new network, each with its own hidden states, and at
    every step the two differ by at most ε_KL after every update.

    :param policy: ``"MlpLstmPolicy"``, ``"CnnLstmPolicy"``, ``"MultiInputLstmPolicy"`` of sb3-contrib, or a subclass of
        ``RecurrentActorCriticPolicy``.
    :param env: The environment, or its id; its actions may be of any space that SB3's PPO takes.
    :param learning_rate: A number, ``"lin_<x>"`` or a function of the remaining progress.
    :param n_steps: Steps per environment and update.
    :param batch_size: Steps in a minibatch of the primary phase: as many sequences as have so many, on average.
    :param n_epochs: Passes over the rollout.
    :param gamma: Discount factor.
    :param gae_lambda: λ of generalised advantage estimation.
    :param sequence_length: The longest sequence of a minibatch: longer ones are cut into windows, which start from the
        hidden states that the rollout went through, and through whose start no gradient flows. ``None`` for whole
        sequences. Bounds are kept, and measured, over whole sequences in any case.
    :param kl_bound: ε_KL, nats: how far any state's action distribution may move in one update.
    :param kl_target_coef: C_β ≥ 1: the primary phase aims at ε_KL/C_β.
    :param beta_init: β at the start of training.
    :param beta_learning_rate: Adam's for β; 0 keeps β constant.
    :param kl_statistic: ``"max"``, or ``"mean"`` to bound the batch's mean divergence instead, in β's loss and in
        the fixup phase.
    :param kl_direction: ``"old_new"`` for KL(π_old ‖ π), as in the authors' code, or ``"new_old"``, as in the paper.
    :param fixup: Run the fixup phase after every ``"epoch"``, after the last one (``"update"``), or never (``"off"``;
        then nothing is guaranteed).
    :param fixup_batch_size: States per step of the fixup phase: as many whole sequences as have so many.
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
    :param use_sde: As in SB3.
    :param sde_sample_freq: As in SB3.
    :param rollout_buffer_class: A subclass of sb3-contrib's ``RecurrentRolloutBuffer``, or of its buffer for ``Dict``.
    :param rollout_buffer_kwargs: As in SB3.
    :param stats_window_size: As in SB3.
    :param tensorboard_log: As in SB3.
    :param policy_kwargs: As in sb3-contrib: ``lstm_hidden_size``, ``n_lstm_layers``, ``shared_lstm``,
        ``enable_critic_lstm``, ``lstm_kwargs``, ….
    :param verbose: As in SB3.
    :param seed: As in SB3.
    :param device: As in SB3.
    :param _init_setup_model: As in SB3.
    """

    name: ClassVar[str] = "RecurrentFixPO"
    sequence_length: int | None

    def __init__(
        self,
        policy: str | type[RecurrentActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 3e-4,
        n_steps: int = 128,
        batch_size: int = 128,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        sequence_length: int | None = None,
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
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            kl_bound=kl_bound,
            kl_target_coef=kl_target_coef,
            beta_init=beta_init,
            beta_learning_rate=beta_learning_rate,
            kl_statistic=kl_statistic,
            kl_direction=kl_direction,
            fixup=fixup,
            fixup_batch_size=fixup_batch_size,
            max_fixup_steps=max_fixup_steps,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            raw_advantage=raw_advantage,
            tasks=tasks,
            beta_per_task=beta_per_task,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
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
            compile=False,
            _init_setup_model=False,
        )
        self.sequence_length = sequence_length
        if _init_setup_model:
            self._setup_model()

    # --- plumbing ---

    def _measurement(self, region: KLRegion, forward: Actions, states: Table, size: int) -> Evaluation:
        """Return the divergence of whole sequences, float64: the largest, or sums whose mean is that of the steps."""

        @th.no_grad()
        def measure(index: th.Tensor) -> th.Tensor:
            observations, old, _ = states.part(states.at(index).rows)
            kl = region.evaluate(forward, observations, old)
            if region.statistic == "max":
                return largest(kl, observations)
            return sums(kl, observations) / states.states_per_row

        return measure
