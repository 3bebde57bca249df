"""sb3-contrib's RecurrentPPO with this package's rollouts and sequences: the same learning, sooner."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch as th
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trl.algorithms.lean_ppo import LeanPPO
from sb3_trl.algorithms.recurrent.recurrence import Recurrence

__all__ = ["LeanRecurrentPPO"]


class LeanRecurrentPPO(Recurrence, LeanPPO):
    """sb3-contrib's ``RecurrentPPO``: the same policies and losses and, given the same sequences, the same numbers.

    Minibatches are not the same: they are whole sequences, or windows of ``sequence_length``, in random order, instead
    of a rollout that is cut after every ``batch_size`` steps. With ``target_kl``, gSDE, or a policy or buffer that does
    in its own way what sb3-contrib's do in an update, updates are sb3-contrib's own.

    :param policy: As in sb3-contrib.
    :param env: As in sb3-contrib.
    :param learning_rate: As in sb3-contrib, or ``"lin_<x>"``; also ``clip_range`` and ``clip_range_vf``.
    :param n_steps: As in sb3-contrib.
    :param batch_size: Steps in a minibatch: as many sequences as have so many, on average.
    :param n_epochs: As in sb3-contrib.
    :param gamma: As in sb3-contrib.
    :param gae_lambda: As in sb3-contrib.
    :param sequence_length: The longest sequence of a minibatch: longer ones are cut into windows, which start from the
        hidden states that the rollout went through, and through whose start no gradient flows. ``None`` for whole
        sequences.
    :param clip_range: As in sb3-contrib.
    :param clip_range_vf: As in sb3-contrib.
    :param normalize_advantage: As in sb3-contrib.
    :param ent_coef: As in sb3-contrib.
    :param vf_coef: As in sb3-contrib.
    :param max_grad_norm: As in sb3-contrib.
    :param use_sde: As in sb3-contrib.
    :param sde_sample_freq: As in sb3-contrib.
    :param rollout_buffer_class: A subclass of sb3-contrib's ``RecurrentRolloutBuffer``, or of its buffer for ``Dict``.
    :param rollout_buffer_kwargs: As in SB3.
    :param target_kl: As in sb3-contrib.
    :param stats_window_size: As in sb3-contrib.
    :param tensorboard_log: As in sb3-contrib.
    :param policy_kwargs: As in sb3-contrib.
    :param verbose: As in sb3-contrib.
    :param seed: As in sb3-contrib.
    :param device: As in sb3-contrib.
    :param _init_setup_model: As in sb3-contrib.
    """

    name: ClassVar[str] = "LeanRecurrentPPO"
    _known_policy: ClassVar[type[ActorCriticPolicy]] = RecurrentActorCriticPolicy
    _known_buffers: ClassVar[tuple[type[RolloutBuffer], ...]] = (RecurrentRolloutBuffer, RecurrentDictRolloutBuffer)
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
        _init_setup_model: bool = True,
    ) -> None:
        with warnings.catch_warnings():  # minibatches are whole sequences, which PPO does not know
            warnings.filterwarnings("ignore", "You have specified a mini-batch size")
            super().__init__(
                policy,
                env,
                learning_rate=learning_rate,
                n_steps=n_steps,
                batch_size=batch_size,
                n_epochs=n_epochs,
                gamma=gamma,
                gae_lambda=gae_lambda,
                clip_range=clip_range,
                clip_range_vf=clip_range_vf,
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
                compile=False,
                _init_setup_model=False,
            )
        self.sequence_length = sequence_length
        if _init_setup_model:
            self._setup_model()

    def train(self) -> None:
        """Update the policy with the rollout just collected."""
        if self._can_update():
            super().train()
        else:
            RecurrentPPO.train(self)  # type: ignore[arg-type]
