"""What a rollout holds of values and log-probabilities, computed for many steps at once, and the advantages."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trl.policies.forward import DistributionAndValues, Extracted
from sb3_trl.policies.masks import Masked
from sb3_trl.rollouts.policy_watch import PolicyWatch
from sb3_trl.table import chunks

__all__ = ["Appraisal", "Values", "generalized_advantages", "rows_of"]

_CHUNK = 4096


class Appraisal:
    """What a policy says of the states of a rollout besides its actions: values and log-probabilities.

    :param algorithm: Collects the rollout.
    :param buffer: Holds its steps.
    """

    #: What callbacks find in ``locals`` when they look it up.
    on_demand: tuple[str, ...] = ("obs_tensor", "values", "log_probs")

    def __init__(self, algorithm: OnPolicyAlgorithm, buffer: RolloutBuffer) -> None:
        self.algorithm: Any = algorithm
        self.policy: Any = algorithm.policy
        self.buffer: Any = buffer
        #: What the actor's features extractor made of every step's observations, if whoever acts keeps it here: an
        #: image is then not passed through its layers again.
        self.features: list[th.Tensor] = []

    # --- what depends on the kind of the policy ---

    def forward(self, inputs: Any) -> tuple[Any, th.Tensor]:
        """Return the distribution and the values ``(n, 1)`` at n states."""
        return DistributionAndValues(self.policy)(inputs)

    def inputs(self, start: int, stop: int) -> Any:
        """Return what ``forward`` takes for some steps of the rollout, a row for each step and environment."""
        observations = rows_of(self.buffer.observations, self.policy, start, stop)
        return Extracted(observations, th.cat(self.features[start:stop])) if self.features else observations

    def inputs_now(self) -> Any:
        """Return what ``forward`` takes for the step that is being taken."""
        return self._observations_now()

    def values(self, observations: Any, index: int | None = None, starts: Any = None) -> th.Tensor:
        """Return the values of the states after the step just taken, ``(n, 1)``.

        :param observations: Of all environments, or of one.
        :param index: Which one.
        :param starts: Where these are the first of an episode, ``(n_envs,)``; by default they are not.
        """
        return self.policy.predict_values(observations)

    def step_is_stored(self) -> None:
        """The step just taken is in the buffer."""

    # --- what rollouts and callbacks ask ---

    @th.no_grad()
    def write(self, start: int, stop: int) -> None:
        """Write what the policy says of some steps into the buffer."""
        inputs, buffer = self.inputs(start, stop), self.buffer
        if (masks := getattr(buffer, "action_masks", None)) is not None:
            inputs = Masked(inputs, rows_of(masks, self.policy, start, stop).bool())
        actions = rows_of(buffer.actions, self.policy, start, stop)
        actions = actions.flatten() if isinstance(self.policy.action_space, spaces.Discrete) else actions.float()
        values, log_probs = [], []
        for part, taken in chunks((inputs, actions), _CHUNK):
            distribution, value = self.forward(part)
            values.append(value.flatten())
            log_probs.append(distribution.log_prob(taken))
        shape = (stop - start, buffer.n_envs)
        buffer.values[start:stop] = th.cat(values).cpu().numpy().reshape(shape)
        buffer.log_probs[start:stop] = th.cat(log_probs).cpu().numpy().reshape(shape)

    @th.no_grad()
    def after_time_limit(self, info: dict[str, Any], index: int) -> Any:
        """Return the value of an episode's last state where only the time limit ended it, else 0.

        :param info: Of the environment, after the step just taken.
        :param index: Its number.
        """
        last = info.get("terminal_observation")
        if last is None or not info.get("TimeLimit.truncated", False):
            return 0.0
        return self.values(self.policy.obs_to_tensor(last)[0], index)[0]

    @th.no_grad()
    def complete(self, new_obs: Any, dones: np.ndarray) -> th.Tensor:
        """Write advantages and returns, and return the values of the states after the last step, ``(n_envs, 1)``."""
        buffer = self.buffer
        buffer.full = buffer.pos == buffer.buffer_size
        last_values = self.values(obs_as_tensor(new_obs, self.policy.device), starts=dones)
        buffer.advantages = generalized_advantages(
            buffer.rewards,
            buffer.values,
            buffer.episode_starts,
            last_values.flatten().cpu().numpy(),
            dones,
            buffer.gamma,
            buffer.gae_lambda,
        )
        buffer.returns = buffer.advantages + buffer.values
        return last_values

    @th.no_grad()
    def local(self, key: str, known: dict[str, Any]) -> Any:
        """Return what callbacks look up while a step is taken, by the policy as it is then.

        :param key: One of ``on_demand``.
        :param known: The locals that are known.
        """
        if key == "obs_tensor":
            return self._observations_now()
        inputs, device = self.inputs_now(), self.policy.device
        if "action_masks" in known:
            inputs = Masked(inputs, th.as_tensor(known["action_masks"], device=device))
        distribution, values = self.forward(inputs)
        return values if key == "values" else distribution.log_prob(th.as_tensor(known["actions"], device=device))

    def _observations_now(self) -> Any:
        return obs_as_tensor(self.algorithm._last_obs, self.policy.device)


class Values:
    """Writes the values and log-probabilities of a rollout, those of every step by the policy that acted in it.

    They are computed for all steps at once when the rollout is over, or when somebody has changed the policy.

    :param appraisal: Writes them.
    :param is_watched: Whether somebody may change the policy.
    """

    def __init__(self, appraisal: Appraisal, is_watched: bool) -> None:
        self._appraisal = appraisal
        self._watch = PolicyWatch(appraisal.policy) if is_watched else None
        self._start = 0  # of the steps that are not written

    def step_is_over(self, step: int) -> bool:
        """Return whether the policy is another than the one that acted in this step."""
        if self._watch is None or not self._watch.has_changed():
            return False
        with self._watch.before():
            self.rollout_is_over(step + 1)
        self._watch.look()
        return True

    def rollout_is_over(self, n_steps: int) -> None:
        """Write what is left, up to so many steps."""
        if self._start < n_steps:
            self._appraisal.write(self._start, n_steps)
        self._start = n_steps


def rows_of(arrays: Any, policy: ActorCriticPolicy, start: int, stop: int) -> Any:
    """Return some steps of arrays ``(n_steps, n_envs, ...)`` as tensors with a row for each step and environment."""
    if isinstance(arrays, dict):
        return {key: rows_of(array, policy, start, stop) for key, array in arrays.items()}
    return th.as_tensor(arrays[start:stop].reshape(-1, *arrays.shape[2:]), device=policy.device)


def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    episode_starts: np.ndarray,
    last_values: np.ndarray,
    dones: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """Return Â_t = δ_t + γλ(1 − done)Â_{t+1}, δ_t = r_t + γ(1 − done)V_{t+1} − V_t (Schulman et al., 2016).

    With the arithmetic of ``RolloutBuffer.compute_returns_and_advantage``, operation by operation.

    :param rewards: ``(n_steps, n_envs)``, float32, as ``values`` and ``episode_starts``.
    :param last_values: V of the states after the last step, ``(n_envs,)``.
    :param dones: Whether the last step ended an episode, ``(n_envs,)``.
    """
    goes_on = 1.0 - np.concatenate((episode_starts[1:], dones[None].astype(np.float32)))
    next_values = np.concatenate((values[1:], last_values[None]))
    advantages = rewards + gamma * next_values * goes_on - values
    discounts = gamma * gae_lambda * goes_on
    for (later, advantage), discount in zip(pairwise(advantages[::-1]), discounts[-2::-1], strict=True):
        advantage += discount * later
    return advantages
