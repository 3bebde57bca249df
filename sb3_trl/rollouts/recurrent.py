"""Rollouts of policies with a memory, with little work per step: what sb3-contrib's buffer would hold, sooner.

Of the networks only the LSTMs and the actor's head are asked in every step, with noise drawn in advance. What the
LSTMs returned is kept, and values and log-probabilities are made of it for many steps at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from sb3_trl.policies.direct import has_hooks
from sb3_trl.policies.forward import features_of
from sb3_trl.policies.masks import apply_masks, unmasked
from sb3_trl.policies.recurrent import TRPLCnnLstmPolicy, TRPLLstmPolicy, TRPLMultiInputLstmPolicy
from sb3_trl.policies.sequences import Hidden
from sb3_trl.rollouts.actor import LeanActor
from sb3_trl.rollouts.collection import act_in_turns, has_known_parts, take_turns
from sb3_trl.rollouts.sequences import RecurrentBuffer
from sb3_trl.rollouts.values import Appraisal

__all__ = ["can_collect_recurrent", "collect_recurrent_rollout"]

#: Maps features ``(n_envs, features)`` and states ``(layers, n_envs, hidden)`` to the states after the step.
Cell: TypeAlias = Callable[[Tensor, Hidden], Hidden]

_POLICIES = (
    RecurrentActorCriticPolicy,
    RecurrentActorCriticCnnPolicy,
    RecurrentMultiInputActorCriticPolicy,
    TRPLLstmPolicy,
    TRPLCnnLstmPolicy,
    TRPLMultiInputLstmPolicy,
)


def can_collect_recurrent(algorithm: OnPolicyAlgorithm) -> bool:
    """Return whether ``collect_recurrent_rollout`` collects what sb3-contrib would; see ``can_collect``."""
    policy: Any = algorithm.policy
    is_known = has_known_parts(algorithm, _POLICIES, (RecurrentRolloutBuffer, RecurrentDictRolloutBuffer))
    return is_known and all(map(_is_plain, (policy.lstm_actor, policy.lstm_critic)))


def collect_recurrent_rollout(
    algorithm: Any, env: VecEnv, callback: BaseCallback, buffer: RecurrentBuffer, n_steps: int
) -> bool:
    """Fill ``buffer`` with the policy's rollout, as ``RecurrentPPO.collect_rollouts`` does.

    Callbacks find in ``locals`` what they find with sb3-contrib.

    :return: Whether the rollout is complete; ``False`` if a callback stopped it.
    """
    memory = Memory(algorithm)
    turns = take_turns(algorithm, env, callback, buffer, n_steps, RecurrentAppraisal(algorithm, buffer, memory))
    return act_in_turns(turns, lambda: RecurrentActor(algorithm.policy, n_steps, env.num_envs, memory), n_steps)


class Memory:
    """The hidden states of a policy while it acts, and what they were in every step of the rollout.

    :param algorithm: Has the policy, and the states after the last rollout.
    """

    def __init__(self, algorithm: Any) -> None:
        self.algorithm = algorithm
        self.policy: RecurrentActorCriticPolicy = algorithm.policy
        #: Before every step, and after the last one.
        self.states: list[RNNStates] = []

    def begin(self) -> None:
        """Take the states that the rollout begins with."""
        device = self.policy.device
        pi, vf = (tuple(tensor.to(device) for tensor in own) for own in self.algorithm._last_lstm_states)
        self.states = [RNNStates(pi, vf)]

    def refresh(self) -> None:
        """Look at the LSTMs again."""
        critic = self.policy.lstm_critic
        self._actor_cell, self._critic_cell = _cell(self.policy.lstm_actor), None if critic is None else _cell(critic)

    def step(self, pi_features: Tensor, vf_features: Tensor) -> Tensor:
        """Take a step, and return what the actor's LSTM makes of it, ``(n_envs, hidden)``.

        :param pi_features: Of the actor, ``(n_envs, features)``.
        :param vf_features: Of the critic; where it has no LSTM, nothing looks at them.
        """
        pi, vf = cast("tuple[Hidden, Hidden]", self.states[-1])
        starts = self.algorithm._last_episode_starts
        if starts.any():
            goes_on = th.as_tensor(1.0 - starts, dtype=th.float32, device=pi[0].device).view(1, -1, 1)
            pi = (goes_on * pi[0], goes_on * pi[1])
            vf = (goes_on * vf[0], goes_on * vf[1])
        pi = self._actor_cell(pi_features, pi)
        vf = pi if self._critic_cell is None else self._critic_cell(vf_features, vf)
        self.states.append(RNNStates(pi, vf))
        return pi[0][-1]


def _is_plain(lstm: nn.LSTM | None) -> bool:
    """Return whether there is no more to an LSTM than its cells."""
    return lstm is None or (type(lstm) is nn.LSTM and not has_hooks(lstm))


def _cell(lstm: nn.LSTM) -> Cell:
    """Return what a plain LSTM does in one step, without the calls around it."""
    layers = [[w.detach() for w in weights] for weights in lstm.all_weights]

    def one_layer(x: Tensor, states: Hidden) -> Hidden:
        hidden, cell = th.lstm_cell(x, (states[0][0], states[1][0]), *layers[0])
        return hidden.unsqueeze(0), cell.unsqueeze(0)

    def all_layers(x: Tensor, states: Hidden) -> Hidden:
        after = []
        for weights, hidden, cell in zip(layers, states[0], states[1], strict=True):
            after.append(th.lstm_cell(x, (hidden, cell), *weights))
            x = after[-1][0]
        return th.stack([hidden for hidden, _ in after]), th.stack([cell for _, cell in after])

    return one_layer if len(layers) == 1 else all_layers


class RecurrentActor(LeanActor):
    """The actor of a policy with a memory.

    :param policy: One that ``can_collect_recurrent``.
    :param n_steps: Length of the rollout.
    :param n_envs: Number of environments.
    :param memory: Its hidden states.
    """

    policy: RecurrentActorCriticPolicy

    def __init__(self, policy: RecurrentActorCriticPolicy, n_steps: int, n_envs: int, memory: Memory) -> None:
        self.memory = memory
        memory.begin()
        super().__init__(policy, n_steps, n_envs)

    def refresh(self) -> None:
        """Look at the policy again, which somebody has changed. Noise and hidden states stay."""
        super().refresh()
        self.memory.refresh()
        own = self.policy.vf_features_extractor
        is_same = own is self.policy.pi_features_extractor or (self.is_plain and type(own) is FlattenExtractor)
        #: The critic's, where its LSTM sees other features than the actor's.
        self._vf_extractor = None if is_same or self.policy.lstm_critic is None else own

    @th.no_grad()
    def act(self, observations: Any, step: int, masks: np.ndarray | None = None) -> np.ndarray:
        """Return the actions of one step, as ``LeanActor`` does."""
        seen = obs_as_tensor(observations, self.device)
        pi_features = vf_features = self._features(seen)
        if self._vf_extractor is not None:
            vf_features = BasePolicy.extract_features(self.policy, seen, self._vf_extractor)
        latent = self.memory.step(pi_features, vf_features)
        return self._in_shape(self._forward(latent, step, masks).cpu().numpy())


class Recalled(NamedTuple):
    """What values and log-probabilities are made of when the LSTMs have been asked."""

    pi: Tensor  # (n, hidden), of the actor's LSTM
    vf: Any  # of the critic's; observations, where it has none


class RecurrentAppraisal(Appraisal):
    """What a policy with a memory says of the states of a rollout.

    :param algorithm: Collects the rollout.
    :param buffer: Holds its steps.
    :param memory: Of the policy that acts.
    """

    on_demand = (*Appraisal.on_demand, "lstm_states", "episode_starts")
    algorithm: Any
    policy: Any
    buffer: Any

    def __init__(self, algorithm: Any, buffer: RecurrentBuffer, memory: Memory) -> None:
        super().__init__(algorithm, buffer)
        self.memory = memory

    def forward(self, inputs: Any) -> tuple[Any, Tensor]:
        """Return the distribution and the values ``(n, 1)``, after the LSTMs."""
        (pi, vf), masks = unmasked(inputs)
        policy = self.policy
        if policy.lstm_critic is None and not policy.shared_lstm:
            vf = policy.critic(features_of(policy, vf, critic=True))
        distribution = policy._get_action_dist_from_latent(policy.mlp_extractor.forward_actor(pi))
        if masks is not None:
            distribution = apply_masks(distribution, masks)
        return distribution, policy.value_net(policy.mlp_extractor.forward_critic(vf))

    def inputs(self, start: int, stop: int) -> Recalled:
        """Return what the LSTMs have made of some steps."""
        after = self.memory.states[start + 1 : stop + 1]
        pi, vf = (th.stack([states[i][0][-1] for states in after]).flatten(0, 1) for i in (0, 1))
        return Recalled(pi, self._seen_by_critic(vf, lambda: super(RecurrentAppraisal, self).inputs(start, stop)))

    def inputs_now(self) -> Recalled:
        """Return what the LSTMs have made of the step that is being taken."""
        pi, vf = (states[0][-1] for states in self.memory.states[-1])
        return Recalled(pi, self._seen_by_critic(vf, self._observations_now))

    def _seen_by_critic(self, outputs: Tensor, observations: Callable[[], Any]) -> Any:
        has_lstm = self.policy.lstm_critic is not None or self.policy.shared_lstm
        return outputs if has_lstm else observations()

    def values(self, observations: Any, index: int | None = None, starts: Any = None) -> Tensor:
        """Return the values of the states after the step just taken, from the hidden states of then."""
        hidden, cell = self.memory.states[-1].vf
        if index is not None:
            hidden, cell = (x[:, index : index + 1].contiguous() for x in (hidden, cell))
        begins = th.zeros(hidden.shape[1]) if starts is None else th.as_tensor(starts, dtype=th.float32)
        return self.policy.predict_values(observations, (hidden, cell), begins.to(self.policy.device))

    def step_is_stored(self) -> None:
        """Leave the hidden states where sb3-contrib does."""
        self.algorithm._last_lstm_states = self.memory.states[-1]

    def complete(self, new_obs: Any, dones: np.ndarray) -> Tensor:
        """Write hidden states, advantages and returns, and return the values of the states after the last step."""
        buffer, before = self.buffer, self.memory.states[:-1]
        for network, arrays in enumerate(
            ((buffer.hidden_states_pi, buffer.cell_states_pi), (buffer.hidden_states_vf, buffer.cell_states_vf))
        ):
            for kind, array in enumerate(arrays):
                array[:] = th.stack([states[network][kind] for states in before]).cpu().numpy()
        return super().complete(new_obs, dones)

    def local(self, key: str, known: dict[str, Any]) -> Any:
        """Return what callbacks look up while a step is taken."""
        if key == "lstm_states":
            return self.memory.states[-1]
        if key == "episode_starts":
            starts = self.algorithm._last_episode_starts
            return th.as_tensor(starts, dtype=th.float32, device=self.policy.device)
        return super().local(key, known)
