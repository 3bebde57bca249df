"""What the algorithms for recurrent policies add to the others: hidden states, sequences, and their rollouts."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.policies import BasePolicy

from sb3_trl.algorithms.arguments import check_at_least
from sb3_trl.algorithms.base import TrustRegionAlgorithm
from sb3_trl.algorithms.masking import masked_actions
from sb3_trl.policies.masks import apply_masks
from sb3_trl.policies.sequences import Sequences, by_sequence, with_sequences
from sb3_trl.rollouts.recurrent import can_collect_recurrent, collect_recurrent_rollout
from sb3_trl.rollouts.rollout import Rollout
from sb3_trl.rollouts.sequences import recurrent_rollout, windows
from sb3_trl.table import Table

__all__ = ["Recurrence"]


class Recurrence(TrustRegionAlgorithm):
    """Makes an algorithm one for policies with a memory, which are sb3-contrib's ``RecurrentActorCriticPolicy``.

    A rollout is whole sequences: whatever is measured is measured at all of their steps, each network with its own
    hidden states. Minibatches are made of as many sequences as have ``batch_size`` steps, or of windows.
    """

    #: Of policies that it takes.
    recurrent_policy_class: ClassVar[type[BasePolicy]] = RecurrentActorCriticPolicy
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = RecurrentPPO.policy_aliases
    policy: Any
    rollout_buffer: Any
    sequence_length: int | None
    #: Before the next step; of an environment whose episode is over they are those of its last step.
    _last_lstm_states: RNNStates | None = None

    # --- rollouts and sequences ---

    _collect = staticmethod(collect_recurrent_rollout)  # type: ignore[assignment]

    def _can_collect(self) -> bool:
        return can_collect_recurrent(self)

    def _collect_as_sb3(self, *arguments: Any) -> bool:
        return RecurrentPPO.collect_rollouts(self, *arguments)  # type: ignore[arg-type]

    def _read_buffer(self) -> Rollout:
        return recurrent_rollout(self.rollout_buffer)

    def _states(self, data: Any) -> Table:
        return by_sequence(data)

    def _minibatches(self, data: Any) -> Table:
        def cut(sequences: Sequences) -> Sequences:
            return windows(self.rollout_buffer, sequences, self.sequence_length)

        return data if isinstance(data, Table) else by_sequence(with_sequences(data, cut))

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return actions and the next hidden states, as in sb3-contrib.

        :param action_masks: Which actions are possible, ``(n, m)`` or ``(m,)``; all by default.
        """
        if action_masks is None:
            return self.policy.predict(observation, state, episode_start, deterministic)

        def decide(observations: Any, masks: th.Tensor) -> tuple[Any, Any]:
            n, (n_layers, _, size) = len(masks), self.policy.lstm_hidden_state_shape
            before = (np.zeros((n_layers, n, size)),) * 2 if state is None else state
            hidden, cell = (th.as_tensor(own, dtype=th.float32, device=self.device) for own in before)
            given = np.zeros(n) if episode_start is None else episode_start
            starts = th.as_tensor(given, dtype=th.float32, device=self.device)
            distribution, after = self.policy.get_distribution(observations, (hidden, cell), starts)
            return apply_masks(distribution, masks), tuple(own.cpu().numpy() for own in after)

        return masked_actions(self.policy, observation, action_masks, decide, deterministic)

    # --- set-up ---

    def _setup_model(self) -> None:
        if self.sequence_length is not None:
            check_at_least(self, {"sequence_length": 1})
        buffer_class = self._buffer_class()
        self.rollout_buffer_class = _no_buffer  # type: ignore[assignment]  # before the policy is there
        super()._setup_model()
        self.rollout_buffer_class = buffer_class
        lstm = self.policy.lstm_actor
        self.rollout_buffer = buffer_class(
            self.n_steps,
            self.observation_space,
            self.action_space,
            hidden_state_shape=(self.n_steps, lstm.num_layers, self.n_envs, lstm.hidden_size),
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            **self.rollout_buffer_kwargs,
        )
        self._set_up_states((lstm.num_layers, self.n_envs, lstm.hidden_size))

    def _set_up_states(self, shape: tuple[int, ...]) -> None:
        """Keep hidden states that were loaded, and where there are none begin with zeros."""
        states = self._last_lstm_states
        if states is None or states.pi[0].shape != shape:
            zeros = tuple(th.zeros(shape) for _ in range(2))
            states = RNNStates(zeros, zeros)
        self._last_lstm_states = _on(states, self.device)

    def _buffer_class(self) -> Any:
        wanted = (
            RecurrentDictRolloutBuffer if isinstance(self.observation_space, spaces.Dict) else RecurrentRolloutBuffer
        )
        given = self.rollout_buffer_class
        if given is None:
            return wanted
        if not issubclass(given, wanted):
            raise ValueError(
                f"rollout_buffer_class={given.__name__} keeps no hidden states: use {wanted.__name__} of sb3-contrib, "
                "or a subclass."
            )
        return given

    def _check_policy_class(self) -> None:
        cls: Any = self.policy_class
        wanted = self.recurrent_policy_class
        if not issubclass(cls, wanted):
            names = ", ".join(map(repr, self.policy_aliases))
            raise ValueError(
                f"{cls.__name__} is no policy of {type(self).__name__}: use {names} or a subclass of {wanted.__name__}."
            )
        for name in ("batch_first", "bidirectional", "proj_size"):
            if (self.policy_kwargs.get("lstm_kwargs") or {}).get(name):
                raise ValueError(
                    f"lstm_kwargs has {name!r}: the LSTM of a policy goes forward in time, which comes first, and its "
                    "outputs are its hidden states. Leave it out."
                )
        if cls._process_sequence is not RecurrentActorCriticPolicy._process_sequence:
            raise ValueError(
                f"{cls.__name__} has a _process_sequence of its own, but sequences are replayed by lstm_actor and "
                "lstm_critic in one call: put what is special into the features extractor or into the LSTMs."
            )

    def _advice_on_policies(self) -> str:
        return f"choose {', '.join(map(repr, self.policy_aliases))} or a class; FixPO, TRPL and PPO take the others."

    def _check_minibatch_size(self, warns: bool = True) -> None:
        """Take any size: minibatches are whole sequences, as many as have so many steps."""

    def _can_compile(self) -> bool:
        return False  # an LSTM is one call of a library, which compilation does not see through

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """Save the model, as in SB3, with its hidden states, so that an episode can go on."""
        on_device = self._last_lstm_states
        self._last_lstm_states = None if on_device is None else _on(on_device, th.device("cpu"))
        try:
            super().save(path, exclude, include)
        finally:
            self._last_lstm_states = on_device


def _on(states: RNNStates, device: th.device) -> RNNStates:
    """Return hidden states on a device."""
    return RNNStates(*(tuple(tensor.to(device) for tensor in own) for own in states))


def _no_buffer(*args: Any, **kwargs: Any) -> None:
    """Stand in for a buffer whose size is not known yet."""
