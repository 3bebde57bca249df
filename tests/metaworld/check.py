"""Every task of Meta-World: what the tests of a few show, once more for all fifty, in two minutes or less.

python tests/metaworld/check.py

Resets bring back the same episode, whatever was played before; goals differ; Meta-World's own policy succeeds, and
``is_success`` says so; Meta-World's own class would have observed and rewarded the same, to the bit, until the episode
is truncated after 500 steps, and at the start of further episodes, which begin as others did. And where there is
something to draw with (``MUJOCO_GL=egl``), two pictures differ.
"""

import os
import sys
import warnings

import gymnasium as gym
import numpy as np
from metaworld.env_dict import MT50_V3
from metaworld.policies import ENV_POLICY_MAP

import sb3_trl.envs  # noqa: F401  registers them
from sb3_trl.envs.metaworld import task_names

EPISODES = 5


def main() -> None:
    """Check all tasks, and end with status 1 if something is wrong with one."""
    warnings.filterwarnings("ignore", "Constant")  # of Meta-World's policies, whose actions are clipped
    faults = [f"{task}: {fault}" for task in task_names("MT50") for fault in faults_of(task)]
    sys.exit("\n".join(faults) if faults else 0)


def faults_of(task: str) -> list[str]:
    """Return what is wrong with a task."""
    env_id = f"sb3_trl/MetaWorld{task.title().replace('-', '')}-v0"
    env, twin = gym.make(env_id), gym.make(env_id)
    first = start_of(env)
    starts = np.array([env.reset()[0] for _ in range(EPISODES)])
    faults = []
    if not all(map(np.array_equal, start_of(env), first)) or not all(map(np.array_equal, start_of(twin), first)):
        faults.append("the same seed is another episode")
    if len(np.unique(starts, axis=0)) < EPISODES:
        faults.append("episodes begin alike")
    if not is_meta_worlds(env, task):
        faults.append("Meta-World's own class observes or rewards something else, or it does not end after 500 steps")
    if not begins_as_meta_worlds(env.unwrapped.sawyer, task):
        faults.append("Meta-World's own class begins otherwise")
    if "MUJOCO_GL" in os.environ and not is_drawn(env_id):
        faults.append("pictures show nothing, or always the same")
    successes = [succeeds(env, task) for _ in range(EPISODES - 2)]
    print(f"{task}: Meta-World's policy succeeds in {sum(successes)} of {len(successes)} episodes", flush=True)
    if not any(successes):
        faults.append("Meta-World's policy does not succeed")
    env.close()
    twin.close()
    return faults


def start_of(env: gym.Env) -> list[np.ndarray]:
    """Return what is observed and rewarded in the first steps."""
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32)
    observation, _ = env.reset(seed=1)
    return [observation, *(np.append(observation, reward) for observation, reward, *_ in map(env.step, actions))]


def is_meta_worlds(env: gym.Env, task: str) -> bool:
    """Play an episode with Meta-World's policy, in the environment and in Meta-World's own class."""
    theirs, policy = meta_worlds(task), ENV_POLICY_MAP[f"{task}-v3"]()
    observation, _ = env.reset()
    theirs._last_rand_vec = env.unwrapped.sawyer._last_rand_vec
    is_same = np.array_equal(observation, theirs.reset()[0])
    for step in range(1, 501):
        action = np.clip(policy.get_action(observation), -1, 1).astype(np.float32)
        (observation, reward, *ends, _), (its, rewarded, *_) = env.step(action), theirs.step(action)
        is_same = is_same and np.array_equal(observation, its) and reward == rewarded and ends == [False, step == 500]
    return is_same


def meta_worlds(task: str):
    """Return Meta-World's own environment, whose goal is ``_last_rand_vec``."""
    env = MT50_V3[f"{task}-v3"](reward_function_version="v2")
    env._partially_observable, env._set_task_called = False, True
    env.__dict__.pop("sawyer_observation_space")
    return env


def begins_as_meta_worlds(mine, task: str) -> bool:
    """Begin with four goals in turn, twice each, wherever the episode before has ended."""
    theirs, rng = meta_worlds(task), np.random.default_rng(0)
    mine._freeze_rand_vec, mine.seeded_rand_vec = False, True
    goals = []
    for goal in range(4):
        mine.np_random = np.random.default_rng(goal)
        mine.reset()
        goals.append(mine._last_rand_vec.copy())
    mine._freeze_rand_vec, is_same = True, True
    for goal in goals * 2:
        theirs._last_rand_vec = mine._last_rand_vec = goal
        is_same = is_same and np.array_equal(theirs.reset()[0], mine.reset()[0])
        for action in rng.uniform(-1, 1, (rng.integers(1, 20), 4)).astype(np.float32):
            its, ours = theirs.step(action), mine.step(action)
            is_same = is_same and np.array_equal(its[0], ours[0]) and its[1] == ours[1]
    return is_same


def is_drawn(env_id: str) -> bool:
    """Return whether pictures of an episode's beginning and of ten steps later show something, and not the same."""
    env = gym.make(env_id, render_mode="rgb_array", width=64, height=48)
    env.reset(seed=0)
    first = env.render()
    for _ in range(10):
        env.step(np.ones(4, np.float32))
    second = env.render()
    env.close()
    return first.shape == (48, 64, 3) and first.std() > 5 and not np.array_equal(first, second)


def succeeds(env: gym.Env, task: str) -> bool:
    """Play with Meta-World's policy until it succeeds or the episode ends."""
    observation, info = env.reset()
    policy, is_over = ENV_POLICY_MAP[f"{task}-v3"](), False
    while not (is_over or info.get("success")):
        action = np.clip(policy.get_action(observation), -1, 1).astype(np.float32)
        observation, _, _, is_over, info = env.step(action)
    assert info["is_success"] == (info["success"] == 1)
    return info["is_success"]


if __name__ == "__main__":
    main()
