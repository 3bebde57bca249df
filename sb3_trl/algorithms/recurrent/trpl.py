"""TRPL for recurrent policies: every step of an episode is projected, as seen from the episode's start."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trl.algorithms.recurrent.recurrence import Recurrence
from sb3_trl.algorithms.trpl import TRPL
from sb3_trl.policies.recurrent import TRPLCnnLstmPolicy, TRPLLstmPolicy, TRPLMultiInputLstmPolicy
from sb3_trl.projections import Projection
from sb3_trl.schedules import StateBound

__all__ = ["RecurrentTRPL"]


class RecurrentTRPL(Recurrence, TRPL):
    """``TRPL`` for policies with a memory.

    What the policy does depends on all that it has seen in an episode. The old distribution at every step is that of
    the old network, which replays every episode of the rollout from its start, or from the rollout's start, with its
    own hidden states; so is the new one wherever it is measured, and where ``hard`` makes it obey the bounds.

    :param policy: ``"MlpLstmPolicy"``, ``"CnnLstmPolicy"``, ``"MultiInputLstmPolicy"`` or a subclass of
        ``TRPLLstmPolicy``.
    :param env: The environment, or its id; its actions may be of any space that SB3's PPO takes.
    :param learning_rate: The policy's, a number, ``"lin_<x>"`` or a function of the remaining progress.
    :param critic_learning_rate: The value function's, likewise.
    :param n_steps: Steps per environment and update.
    :param batch_size: Steps in a minibatch: as many sequences as have so many, on average.
    :param n_epochs: Passes over the rollout to improve the policy.
    :param n_critic_epochs: Passes over the rollout to fit the value function, before those for the policy.
        Where actor and critic share parameters, or an LSTM, there is one loss and ``n_epochs`` counts.
    :param gamma: Discount factor.
    :param gae_lambda: λ of generalised advantage estimation.
    :param sequence_length: The longest sequence of a minibatch: longer ones are cut into windows, which start from the
        hidden states that the rollout went through, and through whose start no gradient flows. ``None`` for whole
        sequences. Bounds are kept, and measured, over whole sequences in any case.
    :param projection: ``"kl"``, ``"w2"``, ``"frobenius"``, ``"joint_kl"``, a ``Projection``, or ``None``.
    :param mean_bound: ε_μ, a number, ``"lin_<x>"``, a function of the remaining progress, or a ``StateBound``
        of the observations. By default 0.03, or that of the ``Projection`` given.
    :param cov_bound: ε_Σ, likewise; by default 1e-3. Where the standard deviation does not depend on the state
        but the bound does, the smallest bound of the batch counts.
    :param kl_bound: ε of discrete actions, likewise; by default 0.01. They have neither of the other two.
    :param trust_region_coef: α, the weight of the penalty.
    :param entropy_schedule: ``"exp"`` or ``"linear"``: how the lower bound of the entropy falls from the first
        batch's entropy to the target; ``None`` for no entropy control.
    :param target_entropy: κ, nats per action dimension.
    :param temperature: τ of the exponential schedule.
    :param entropy_equality: Make the entropy equal to its bound.
    :param entropy_first: Control the entropy before the trust region instead of after it.
    :param n_regression_epochs: Passes that fit the policy to its projection after the policy epochs (section
        4.4), the alternative to the penalty.
    :param hard: Make the policy that acts obey the bounds at every step of the batch: further steps on the
        penalty alone until it does, then, past ``max_hard_steps``, a halving search back to the old policy.
    :param max_hard_steps: Cap of those steps in one update.
    :param normalize_advantage: Normalise advantages in each minibatch; ``"task"``: among those of each task, once.
    :param tasks: How the tasks of a policy for many are told apart, as in ``FixPO``: each has its own curves in the
        log then. Bounds of each task are a ``StateBound``.
    :param ent_coef: Entropy bonus.
    :param vf_coef: Weight of the value loss where actor and critic share parameters.
    :param max_grad_norm: Gradient clipping, none by default.
    :param rollout_buffer_class: A subclass of sb3-contrib's ``RecurrentRolloutBuffer``, or of its buffer for ``Dict``.
    :param rollout_buffer_kwargs: As in SB3.
    :param stats_window_size: As in SB3.
    :param tensorboard_log: As in SB3.
    :param policy_kwargs: Arguments of ``TRPLLstmPolicy``: ``lstm_hidden_size``, ``enable_critic_lstm``, …,
        ``covariance``, ``contextual_std``, ``init_std``, ….
    :param verbose: As in SB3.
    :param seed: As in SB3.
    :param device: As in SB3.
    :param _init_setup_model: As in SB3.
    """

    name: ClassVar[str] = "RecurrentTRPL"
    recurrent_policy_class: ClassVar[type[BasePolicy]] = TRPLLstmPolicy
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpLstmPolicy": TRPLLstmPolicy,
        "CnnLstmPolicy": TRPLCnnLstmPolicy,
        "MultiInputLstmPolicy": TRPLMultiInputLstmPolicy,
    }
    sequence_length: int | None

    def __init__(
        self,
        policy: str | type[TRPLLstmPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 1e-4,
        critic_learning_rate: float | str | Schedule = 1e-3,
        n_steps: int = 128,
        batch_size: int = 128,
        n_epochs: int = 10,
        n_critic_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        sequence_length: int | None = None,
        projection: str | Projection | None = "kl",
        mean_bound: float | str | Schedule | StateBound | None = None,
        cov_bound: float | str | Schedule | StateBound | None = None,
        kl_bound: float | str | Schedule | StateBound | None = None,
        trust_region_coef: float = 8.0,
        entropy_schedule: Literal["exp", "linear"] | None = None,
        target_entropy: float = 0.0,
        temperature: float = 0.5,
        entropy_equality: bool = False,
        entropy_first: bool = False,
        n_regression_epochs: int = 0,
        hard: bool = False,
        max_hard_steps: int = 200,
        normalize_advantage: bool | Literal["task"] = True,
        tasks: str | int | tuple[int, int] | None = None,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float | None = None,
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
            critic_learning_rate=critic_learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            n_critic_epochs=n_critic_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            projection=projection,
            mean_bound=mean_bound,
            cov_bound=cov_bound,
            kl_bound=kl_bound,
            trust_region_coef=trust_region_coef,
            entropy_schedule=entropy_schedule,
            target_entropy=target_entropy,
            temperature=temperature,
            entropy_equality=entropy_equality,
            entropy_first=entropy_first,
            n_regression_epochs=n_regression_epochs,
            hard=hard,
            max_hard_steps=max_hard_steps,
            normalize_advantage=normalize_advantage,
            tasks=tasks,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
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
