"""Every task of Meta-World: what the tests of a few show, once more for all fifty, in a minute.

python tests/metaworld/check.py

Resets bring back the same episode, whatever was played before; goals differ; Meta-World's own policy succeeds, and
``is_success`` says so; and Meta-World's own class would have observed and rewarded the same, to the bit.
"""

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
        faults.append("Meta-World's own class observes or rewards something else")
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
    """Play an episode's first half with Meta-World's policy, in the environment and in Meta-World's own class."""
    theirs, policy = MT50_V3[f"{task}-v3"](reward_function_version="v2"), ENV_POLICY_MAP[f"{task}-v3"]()
    observation, _ = env.reset()
    theirs._partially_observable = False
    theirs.__dict__.pop("sawyer_observation_space")
    theirs._set_task_called, theirs._last_rand_vec = True, env.unwrapped.sawyer._last_rand_vec
    is_same = np.array_equal(observation, theirs.reset()[0])
    for _ in range(250):
        action = np.clip(policy.get_action(observation), -1, 1).astype(np.float32)
        (observation, reward, *_), (its, rewarded, *_) = env.step(action), theirs.step(action)
        is_same = is_same and np.array_equal(observation, its) and reward == rewarded
    return is_same


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
