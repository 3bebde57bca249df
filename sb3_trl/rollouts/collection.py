"""Rollouts with little work per step: what SB3's buffer would hold, number for number, in a fraction of the time.

The actor alone acts, with noise drawn in advance; values and log-probabilities are computed for the whole rollout at
once when it is over.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_trl.policies.actor_critic import CnnPolicy, MlpPolicy, MultiInputPolicy, SingleOptimizerPolicy
from sb3_trl.policies.forward import DistributionAndValues
from sb3_trl.policies.masks import Masked
from sb3_trl.rollouts.actor import LeanActor
from sb3_trl.rollouts.locals import give_locals
from sb3_trl.rollouts.policy_watch import PolicyWatch, leaves_policy_alone
from sb3_trl.rollouts.stepping import stepping
from sb3_trl.table import chunks

__all__ = ["Turn", "can_collect", "collect_rollout", "evaluate", "generalized_advantages", "take_turns"]

_POLICIES = (
    MlpPolicy,
    CnnPolicy,
    MultiInputPolicy,
    SingleOptimizerPolicy,
    ActorCriticPolicy,
    ActorCriticCnnPolicy,
    MultiInputActorCriticPolicy,
)
_CHUNK = 4096


def can_collect(algorithm: OnPolicyAlgorithm) -> bool:
    """Return whether ``collect_rollout`` collects what SB3 would: for policies and buffers of SB3 and this package.

    What somebody else's class overrides must be called step by step, and gSDE keeps its noise in the policy: they
    take SB3's own path.
    """
    policy, buffer = algorithm.policy, algorithm.rollout_buffer
    return (
        type(policy) in _POLICIES
        and type(buffer) in (RolloutBuffer, DictRolloutBuffer)
        and not algorithm.use_sde
        and not policy.squash_output
    )


def collect_rollout(
    algorithm: OnPolicyAlgorithm, env: VecEnv, callback: BaseCallback, buffer: RolloutBuffer, n_steps: int
) -> bool:
    """Fill ``buffer`` with the policy's rollout, as ``OnPolicyAlgorithm.collect_rollouts`` does.

    Callbacks find in ``locals`` what they find with SB3. What is not known yet, ``values`` and ``log_probs`` in the
    middle of a rollout, is computed when they ask for it.

    :return: Whether the rollout is complete; ``False`` if a callback stopped it.
    """
    features: list[th.Tensor] = []
    rollout = take_turns(algorithm, env, callback, buffer, n_steps, features)
    turn = next(rollout)
    actor = LeanActor(algorithm.policy, n_steps, env.num_envs, features)
    try:
        for step in range(n_steps):
            if turn.policy_has_changed:
                actor.refresh()
            turn = rollout.send(actor.act(turn.observations, step, turn.action_masks))
    except StopIteration as end:
        return end.value
    raise AssertionError("A rollout ends with its last step.")


class Turn(NamedTuple):
    """What a rollout gives to whoever acts in it."""

    observations: Any
    policy_has_changed: bool  # since the turn before
    action_masks: np.ndarray | None = None  # (n_envs, m)


def take_turns(
    algorithm: OnPolicyAlgorithm,
    env: VecEnv,
    callback: BaseCallback,
    buffer: RolloutBuffer,
    n_steps: int,
    features: Sequence[th.Tensor] = (),
) -> Generator[Turn, np.ndarray, bool]:
    """Yield every step's turn in a rollout, take its actions, and return whether the rollout is complete.

    The policy that acts first is the one that callbacks leave at the start of the rollout, and the actions of every
    turn are to be drawn from the policy as it is then: a callback may have changed it. Values and log-probabilities
    are those of the policy that acted.

    :param features: What the actor's features extractor made of every step's observations, if whoever acts keeps it,
        to be appended before the actions are sent: an image is then not passed through its layers again.
    """
    policy = algorithm.policy
    clip, take_step = _clipper(policy.action_space, env.num_envs), stepping(env)
    policy.set_training_mode(False)
    buffer.reset()
    callback.on_rollout_start()
    values = _Values(policy, buffer, features, is_watched=not leaves_policy_alone(callback))
    shared = {"self": algorithm, "env": env, "callback": callback, "rollout_buffer": buffer, "n_rollout_steps": n_steps}

    give_locals(callback, algorithm)
    callback.update_locals(shared)
    has_changed, masks = False, None
    for step in range(n_steps):
        observations = algorithm._last_obs
        if step == 0 or masks is not None:
            masks = _masks(algorithm, env, buffer, step)
        actions = yield Turn(observations, has_changed, masks)
        clipped_actions = clip(actions)
        new_obs, rewards, dones, infos = take_step(clipped_actions)
        algorithm.num_timesteps += env.num_envs
        changed = {
            "n_steps": step,
            "actions": actions,
            "clipped_actions": clipped_actions,
            "new_obs": new_obs,
            "rewards": rewards,
            "dones": dones,
            "infos": infos,
        }
        callback.update_locals(changed if masks is None else changed | {"action_masks": masks})
        if not callback.on_step():
            return False
        algorithm._update_info_buffer(infos, dones)
        for index in dones.nonzero()[0] if any(dones.tolist()) else ():
            rewards[index] += algorithm.gamma * _value_after_time_limit(policy, infos[index])
        _store(buffer, step, observations, actions, rewards, algorithm._last_episode_starts)
        algorithm._last_obs = new_obs  # type: ignore[assignment]
        algorithm._last_episode_starts = dones
        has_changed = values.step_is_over(step)

    values.rollout_is_over(n_steps)
    last_values = _complete(buffer, policy, new_obs, dones)
    callback.update_locals(_locals_at_the_end(buffer, policy, n_steps, observations, actions, last_values))
    callback.on_rollout_end()
    return True


def _masks(algorithm: Any, env: VecEnv, buffer: Any, step: int) -> np.ndarray | None:
    """Return which actions are possible in a step, and keep it; ``None`` where nobody has masks."""
    when = f" at step {step + 1} of the rollout"
    masks = algorithm.action_masks(env, when) if hasattr(algorithm, "action_masks") else None
    if masks is None:
        vars(buffer).pop("action_masks", None)
        return None
    if step == 0:
        buffer.action_masks = np.ones((buffer.buffer_size, *masks.shape), np.float32)
    buffer.action_masks[step] = masks
    return masks


def _locals_at_the_end(
    buffer: RolloutBuffer,
    policy: ActorCriticPolicy,
    n_steps: int,
    observations: Any,
    actions: np.ndarray,
    last_values: th.Tensor,
) -> dict[str, Any]:
    """Return what SB3 leaves for callbacks when a rollout is over: the last step's, but the values after it."""
    return {
        "n_steps": n_steps,
        "actions": actions.reshape(-1, 1) if isinstance(policy.action_space, spaces.Discrete) else actions,
        "obs_tensor": obs_as_tensor(observations, policy.device),
        "values": last_values,
        "log_probs": th.as_tensor(buffer.log_probs[n_steps - 1], device=policy.device),
    }


def _clipper(space: spaces.Space, n_envs: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that brings actions within their bounds."""
    if not isinstance(space, spaces.Box):
        return lambda actions: actions
    low, high = (np.array([bound] * n_envs) for bound in (space.low, space.high))  # of the shape of the actions
    return lambda actions: np.minimum(np.maximum(actions, low), high)  # what np.clip does, in a third of its time


@th.no_grad()
def _value_after_time_limit(policy: ActorCriticPolicy, info: dict[str, Any]) -> Any:
    """Return the value of an episode's last state where only the time limit ended it, else 0."""
    last = info.get("terminal_observation")
    if last is None or not info.get("TimeLimit.truncated", False):
        return 0.0
    return policy.predict_values(policy.obs_to_tensor(last)[0])[0]


def _store(
    buffer: RolloutBuffer,
    step: int,
    observations: Any,
    actions: np.ndarray,
    rewards: np.ndarray,
    episode_starts: Any,
) -> None:
    """Write one step, what ``buffer.add`` writes before anything is known of the critic."""
    if isinstance(observations, dict):
        for key, array in buffer.observations.items():  # type: ignore[attr-defined]
            array[step] = observations[key].reshape(array.shape[1:])
    else:
        buffer.observations[step] = observations.reshape(buffer.observations.shape[1:])
    buffer.actions[step] = actions.reshape(buffer.actions.shape[1:])
    buffer.rewards[step] = rewards
    buffer.episode_starts[step] = episode_starts
    buffer.pos = step + 1


class _Values:
    """Writes the values and log-probabilities of a rollout, those of every step by the policy that acted in it.

    They are computed for all steps at once when the rollout is over, or when somebody has changed the policy.

    :param policy: As it is at the start of the rollout.
    :param buffer: Holds the steps.
    :param features: As in ``take_turns``.
    :param is_watched: Whether somebody may change the policy.
    """

    def __init__(
        self, policy: ActorCriticPolicy, buffer: RolloutBuffer, features: Sequence[th.Tensor], is_watched: bool
    ) -> None:
        self._policy, self._buffer, self._features = policy, buffer, features
        self._watch = PolicyWatch(policy) if is_watched else None
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
            evaluate(self._buffer, self._policy, self._start, n_steps, self._features[self._start : n_steps])
        self._start = n_steps


@th.no_grad()
def evaluate(
    buffer: RolloutBuffer, policy: ActorCriticPolicy, start: int, stop: int, features: Sequence[th.Tensor] = ()
) -> None:
    """Write what the policy says of some steps: values and log-probabilities.

    :param features: What the actor's features extractor made of each step's observations, if that is known.
    """
    observations, actions = (_as_rows(arrays, policy, start, stop) for arrays in (buffer.observations, buffer.actions))
    if (masks := getattr(buffer, "action_masks", None)) is not None:
        observations = Masked(observations, _as_rows(masks, policy, start, stop).bool())
    is_discrete = isinstance(policy.action_space, spaces.Discrete)
    actions = actions.flatten() if is_discrete else actions.float()
    known = th.cat([*features]) if features else None
    forward = DistributionAndValues(policy)
    values, log_probs = [], []
    for part, taken, known_part in chunks((observations, actions, known), _CHUNK):
        distribution, value = forward(part, known_part)
        values.append(value.flatten())
        log_probs.append(distribution.log_prob(taken))
    shape = (stop - start, buffer.n_envs)
    buffer.values[start:stop] = th.cat(values).cpu().numpy().reshape(shape)
    buffer.log_probs[start:stop] = th.cat(log_probs).cpu().numpy().reshape(shape)


@th.no_grad()
def _complete(buffer: RolloutBuffer, policy: ActorCriticPolicy, new_obs: Any, dones: np.ndarray) -> th.Tensor:
    """Write advantages and returns, and return the values of the states after the last step, ``(n_envs, 1)``."""
    buffer.full = buffer.pos == buffer.buffer_size
    last_values = policy.predict_values(obs_as_tensor(new_obs, policy.device))
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


def _as_rows(arrays: Any, policy: ActorCriticPolicy, start: int, stop: int) -> Any:
    if isinstance(arrays, dict):
        return {key: _as_rows(array, policy, start, stop) for key, array in arrays.items()}
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
