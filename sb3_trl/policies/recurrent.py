"""Recurrent actor-critic policies whose distribution can be projected onto a trust region."""

from __future__ import annotations

from typing import Any

import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_trl.policies.actor_critic import TRPLPolicy
from sb3_trl.policies.masks import unmasked
from sb3_trl.policies.sequences import Sequences

__all__ = ["TRPLCnnLstmPolicy", "TRPLLstmPolicy", "TRPLMultiInputLstmPolicy"]


class _WithLstm(RecurrentActorCriticPolicy):
    """Takes the arguments of the LSTMs from an attribute, past a constructor that does not know of them."""

    _lstm_arguments: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | self._lstm_arguments))


class TRPLLstmPolicy(TRPLPolicy, _WithLstm):
    """``TRPLPolicy`` with the memory of sb3-contrib's ``MlpLstmPolicy``.

    The critic has an optimiser of its own, unless it shares parameters with the actor, or its LSTM.

    :param observation_space: Observation space.
    :param action_space: Action space: ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``.
    :param lr_schedule: The actor's learning rate.
    :param lstm_hidden_size: Hidden units of each LSTM layer.
    :param n_lstm_layers: Number of LSTM layers.
    :param shared_lstm: Whether the critic sees what the actor's LSTM makes, without training it. Needs
        ``share_features_extractor=True`` and ``enable_critic_lstm=False``.
    :param enable_critic_lstm: Whether the critic has an LSTM of its own; without either it has no memory.
    :param lstm_kwargs: Other arguments of ``torch.nn.LSTM``.
    :param kwargs: As ``TRPLPolicy``.
    """

    lstm_critic: nn.LSTM | None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        lstm_hidden_size: int = 256,
        n_lstm_layers: int = 1,
        shared_lstm: bool = False,
        enable_critic_lstm: bool = True,
        lstm_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._lstm_arguments = {
            "lstm_hidden_size": lstm_hidden_size,
            "n_lstm_layers": n_lstm_layers,
            "shared_lstm": shared_lstm,
            "enable_critic_lstm": enable_critic_lstm,
            "lstm_kwargs": lstm_kwargs,
        }
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self._build_optimizers(lr_schedule(1))

    # Those that take hidden states, and predict from them, are sb3-contrib's.
    get_distribution = RecurrentActorCriticPolicy.get_distribution  # type: ignore[assignment]

    def predict_values(self, obs: Any, lstm_states: Any = None, episode_starts: Any = None) -> th.Tensor:
        """Return the values of single steps, as in sb3-contrib, or of all steps of ``Sequences``."""
        if isinstance(unmasked(obs)[0], Sequences):
            return TRPLPolicy.predict_values(self, obs)
        return RecurrentActorCriticPolicy.predict_values(self, obs, lstm_states, episode_starts)

    def _build_optimizers(self, learning_rate: float) -> None:
        if not hasattr(self, "lstm_critic"):
            return  # not yet
        if self.shared_lstm:
            self.optimizer, self.critic_optimizer = self.make_optimizer(list(self.parameters()), learning_rate), None
        else:
            super()._build_optimizers(learning_rate)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self._lstm_arguments


class TRPLCnnLstmPolicy(TRPLLstmPolicy):
    """``TRPLLstmPolicy`` for image observations (NatureCNN)."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )


class TRPLMultiInputLstmPolicy(TRPLLstmPolicy):
    """``TRPLLstmPolicy`` for ``Dict`` observations (CombinedExtractor)."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )
