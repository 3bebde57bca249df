"""Rollouts with little work per step: what SB3's buffer would hold, number for number, in a fraction of the time.

The actor alone acts, with noise drawn in advance; values and log-probabilities are computed for the whole rollout at
once when it is over.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
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
from sb3_trl.rollouts.actor import LeanActor
from sb3_trl.rollouts.locals import give_locals
from sb3_trl.rollouts.policy_watch import leaves_policy_alone
from sb3_trl.rollouts.stepping import stepping
from sb3_trl.rollouts.values import Appraisal, Values

__all__ = ["Turn", "act_in_turns", "can_collect", "collect_rollout", "has_known_parts", "take_turns"]

_POLICIES = (
    MlpPolicy,
    CnnPolicy,
    MultiInputPolicy,
    SingleOptimizerPolicy,
    ActorCriticPolicy,
    ActorCriticCnnPolicy,
    MultiInputActorCriticPolicy,
)


def can_collect(algorithm: OnPolicyAlgorithm) -> bool:
    """Return whether ``collect_rollout`` collects what SB3 would: for policies and buffers of SB3 and this package.

    What somebody else's class overrides must be called step by step, and gSDE keeps its noise in the policy: they
    take SB3's own path.
    """
    return has_known_parts(algorithm, _POLICIES, (RolloutBuffer, DictRolloutBuffer))


def has_known_parts(algorithm: OnPolicyAlgorithm, policies: Sequence[type], buffers: Sequence[type]) -> bool:
    """Return whether policy and buffer are of these very classes, and actions are drawn anew in every step."""
    policy, buffer = algorithm.policy, algorithm.rollout_buffer
    return type(policy) in policies and type(buffer) in buffers and not algorithm.use_sde and not policy.squash_output


def collect_rollout(
    algorithm: OnPolicyAlgorithm, env: VecEnv, callback: BaseCallback, buffer: RolloutBuffer, n_steps: int
) -> bool:
    """Fill ``buffer`` with the policy's rollout, as ``OnPolicyAlgorithm.collect_rollouts`` does.

    Callbacks find in ``locals`` what they find with SB3. What is not known yet, ``values`` and ``log_probs`` in the
    middle of a rollout, is computed when they ask for it.

    :return: Whether the rollout is complete; ``False`` if a callback stopped it.
    """
    appraisal = Appraisal(algorithm, buffer)
    turns = take_turns(algorithm, env, callback, buffer, n_steps, appraisal)
    return act_in_turns(turns, lambda: LeanActor(algorithm.policy, n_steps, env.num_envs, appraisal.features), n_steps)


def act_in_turns(rollout: Generator[Turn, np.ndarray, bool], make_actor: Callable[[], LeanActor], n_steps: int) -> bool:
    """Act in every turn of a rollout, and return whether it is complete.

    :param rollout: What ``take_turns`` returns.
    :param make_actor: Called when callbacks have seen the start of the rollout.
    :param n_steps: How many turns there are.
    """
    turn = next(rollout)
    actor = make_actor()
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
    appraisal: Appraisal | None = None,
) -> Generator[Turn, np.ndarray, bool]:
    """Yield every step's turn in a rollout, take its actions, and return whether the rollout is complete.

    The policy that acts first is the one that callbacks leave at the start of the rollout, and the actions of every
    turn are to be drawn from the policy as it is then: a callback may have changed it. Values and log-probabilities
    are those of the policy that acted.

    :param appraisal: Computes them; by default for a policy without a memory.
    """
    policy, appraisal = algorithm.policy, appraisal or Appraisal(algorithm, buffer)
    clip, take_step = _clipper(policy.action_space, env.num_envs), stepping(env)
    policy.set_training_mode(False)
    buffer.reset()
    callback.on_rollout_start()
    values = Values(appraisal, is_watched=not leaves_policy_alone(callback))
    shared = {"self": algorithm, "env": env, "callback": callback, "rollout_buffer": buffer, "n_rollout_steps": n_steps}

    give_locals(callback, appraisal)
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
        changed = {"n_steps": step, "actions": actions, "clipped_actions": clipped_actions}
        changed |= {"new_obs": new_obs, "rewards": rewards, "dones": dones, "infos": infos}
        callback.update_locals(changed if masks is None else changed | {"action_masks": masks})
        if not callback.on_step():
            return False
        algorithm._update_info_buffer(infos, dones)
        _add_values_after_time_limits(rewards, dones, infos, algorithm.gamma, appraisal)
        _store(buffer, step, observations, actions, rewards, algorithm._last_episode_starts)
        algorithm._last_obs = new_obs  # type: ignore[assignment]
        algorithm._last_episode_starts = dones
        appraisal.step_is_stored()
        has_changed = values.step_is_over(step)

    values.rollout_is_over(n_steps)
    last_values = appraisal.complete(new_obs, dones)
    callback.update_locals(_locals_at_the_end(buffer, policy, n_steps, observations, actions, last_values))
    callback.on_rollout_end()
    return True


def _add_values_after_time_limits(
    rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]], gamma: float, appraisal: Appraisal
) -> None:
    """Add to an episode's last reward what would have come, if a time limit ended it."""
    for index in dones.nonzero()[0].tolist() if any(dones.tolist()) else ():
        rewards[index] += gamma * appraisal.after_time_limit(infos[index], index)


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
