"""Entries of an observation can be hidden, and tasks without velocities are the tasks they are named after."""

import importlib.util
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env

from sb3_trl import TRPL
from sb3_trl.envs import HiddenEntries

#: What is left of the observation.
SHOWN = {
    "CartPole-v1": [0, 2],
    "Pendulum-v1": [0, 1],
    "MountainCarContinuous-v0": [0],
    "LunarLander-v3": [0, 1, 4, 6, 7],
    "LunarLanderContinuous-v3": [0, 1, 4, 6, 7],
}
without_box2d = pytest.mark.skipif(importlib.util.find_spec("Box2D") is None, reason="Box2D is not installed")
IDS = [pytest.param(env_id, marks=[without_box2d] if "Lander" in env_id else []) for env_id in SHOWN]


def no_vel(env_id: str, **kwargs) -> gym.Env:
    return gym.make(f"sb3_trl/{env_id.replace('-', 'NoVel-')}", **kwargs)


@pytest.mark.parametrize("env_id", IDS)
def test_the_task_is_the_same_but_for_what_is_seen(env_id):
    env, full = no_vel(env_id), gym.make(env_id)
    env.action_space.seed(0)
    observation, whole = env.reset(seed=3)[0], full.reset(seed=3)[0]
    for _ in range(20):
        np.testing.assert_array_equal(observation, whole[SHOWN[env_id]])
        assert env.observation_space.contains(observation)
        action = env.action_space.sample()
        (observation, *mine, _), (whole, *its, _) = env.step(action), full.step(action)
        assert mine == its
    for name in ("max_episode_steps", "reward_threshold", "entry_point"):
        assert getattr(env.spec, name) == getattr(full.spec, name)


@pytest.mark.parametrize("env_id", IDS)
def test_stable_baselines3_finds_nothing(env_id):
    env = no_vel(env_id)  # whose library is imported now, if it has not been: Box2D's warnings are its own
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*symmetric and normalized.*")  # Pendulum's own actions
        check_env(env)
    PPO("MlpPolicy", no_vel(env_id), n_steps=64, batch_size=32, n_epochs=1, device="cpu").learn(64)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_arguments_and_pictures_are_those_of_the_task(env_id):
    env = no_vel(env_id, render_mode="rgb_array", max_episode_steps=7)
    env.reset(seed=0)
    assert env.render().ndim == 3
    steps = [env.step(env.action_space.sample()) for _ in range(7)]
    assert [truncated for *_, truncated, _ in steps] == [False] * 6 + [True]
    assert env.spec.make().observation_space == env.observation_space


def test_errors_say_what_can_be_hidden():
    with pytest.raises(ValueError, match=r"indices=\[4\]: choose some, not all, of the entries 0 to 3"):
        HiddenEntries(gym.make("CartPole-v1"), [4])
    with pytest.raises(ValueError, match=r"indices=\[0, 1, 2, 3\]: choose some, not all"):
        HiddenEntries(gym.make("CartPole-v1"), range(4))
    with pytest.raises(ValueError, match=r"indices=\[\]: choose some"):
        HiddenEntries(gym.make("CartPole-v1"), [])
    with pytest.raises(ValueError, match="observations that are vectors, not those of Discrete"):
        HiddenEntries(gym.make("Taxi-v4") if "Taxi-v4" in gym.registry else gym.make("Taxi-v3"), [0])


def test_the_zoo_trains_on_it_with_the_wrapper(tmp_path, run):
    (tmp_path / "hidden.yml").write_text(
        "CartPole-v1:\n  env_wrapper:\n    - sb3_trl.envs.HiddenEntries:\n        indices: [1, 3]\n"
        "  policy: MlpPolicy\n  n_timesteps: 64\n  n_steps: 64\n  batch_size: 32\n  n_epochs: 1\n  n_critic_epochs: 1\n"
    )
    code, out, error = run(
        "train --algo trpl --env CartPole-v1 --conf-file hidden.yml -f logs --eval-freq -1 --device cpu"
    )
    assert code == 0, out + error
    (saved,) = Path(tmp_path).rglob("CartPole-v1.zip")
    assert TRPL.load(saved, device="cpu").observation_space == spaces.Box(
        np.array([-4.8, -0.41887903], np.float32), np.array([4.8, 0.41887903], np.float32)
    )
