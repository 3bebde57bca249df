"""SB3's vectorised environments and wrappers, around and under every algorithm."""

from functools import cache

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from support import ALGORITHMS, PointEnv, small, vec_env

every_algorithm = pytest.mark.parametrize("cls", ALGORITHMS)
SMALL_CNN = {"features_extractor_kwargs": {"features_dim": 4}}


def images(n: int):
    return vec_env(n, observation="image")


def dicts(n: int):
    return vec_env(n, observation="dict")


WRAPPED = {
    "one environment": (PointEnv, "MlpPolicy"),
    "monitored": (lambda: Monitor(PointEnv()), "MlpPolicy"),
    "normalised": (lambda: VecNormalize(vec_env(2)), "MlpPolicy"),
    "normalised, not in training": (lambda: VecNormalize(vec_env(2), training=False), "MlpPolicy"),
    "normalised, rewards alone": (lambda: VecNormalize(vec_env(2), norm_obs=False), "MlpPolicy"),
    "normalised twice": (lambda: VecNormalize(VecNormalize(vec_env(2))), "MlpPolicy"),
    "monitored by the vector": (lambda: VecMonitor(vec_env(2)), "MlpPolicy"),
    "normalised under a monitor": (lambda: VecMonitor(VecNormalize(vec_env(2))), "MlpPolicy"),
    "stacked": (lambda: VecFrameStack(vec_env(2), 3), "MlpPolicy"),
    "normalised, then stacked": (lambda: VecFrameStack(VecNormalize(vec_env(2)), 3), "MlpPolicy"),
    "stacked, then normalised": (lambda: VecNormalize(VecFrameStack(vec_env(2), 3)), "MlpPolicy"),
    "checked": (lambda: VecCheckNan(vec_env(2), raise_exception=True), "MlpPolicy"),
    "images": (lambda: images(2), "CnnPolicy"),
    "images, transposed": (lambda: VecTransposeImage(images(2)), "CnnPolicy"),
    "images, stacked": (lambda: VecFrameStack(images(2), 2), "CnnPolicy"),
    "images, transposed and stacked": (lambda: VecFrameStack(VecTransposeImage(images(2)), 2), "CnnPolicy"),
    "dicts": (lambda: dicts(2), "MultiInputPolicy"),
    "dicts, one key": (lambda: VecExtractDictObs(dicts(2), "goal"), "MlpPolicy"),
    "dicts, normalised": (lambda: VecNormalize(dicts(2), norm_obs_keys=["goal", "time"]), "MultiInputPolicy"),
}


def described(cls: type, make, policy: str):
    """Return what is there after a training: the environment, its statistics, what the buffer holds."""
    model = small(cls, make(), policy, policy_kwargs=SMALL_CNN if policy == "CnnPolicy" else {})
    model.learn(32)
    env, wrappers = model.get_env(), []
    while hasattr(env, "venv"):
        wrappers.append(type(env))
        env = env.venv
    buffer = model.rollout_buffer
    observations = buffer.observations if isinstance(buffer.observations, dict) else {"": buffer.observations}
    normalizer = model.get_vec_normalize_env()
    counts = (
        normalizer
        and [
            rms.count
            for rms in (normalizer.obs_rms.values() if isinstance(normalizer.obs_rms, dict) else [normalizer.obs_rms])
        ]
        if normalizer is not None and normalizer.norm_obs
        else None
    )
    return (
        [*wrappers, type(env)],
        {key: (array.size, array.dtype) for key, array in observations.items()},
        (type(normalizer), counts, normalizer and normalizer.ret_rms.count),
        (model.num_timesteps, len(model.ep_info_buffer), [info["l"] for info in model.ep_info_buffer]),
        (model.observation_space, model.action_space, model.n_envs),
    )


@cache
def described_of_ppo(name: str):
    return described(PPO, *WRAPPED[name])


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers(cls, name):
    assert described(cls, *WRAPPED[name]) == described_of_ppo(name)


@every_algorithm
def test_environments_in_processes(cls):
    env = SubprocVecEnv([PointEnv] * 2, start_method="fork")
    try:
        model = small(cls, VecNormalize(VecMonitor(env)))
        model.learn(48)
        assert [info["l"] for info in model.ep_info_buffer] == [10] * 4
        assert model.get_vec_normalize_env().obs_rms.count == pytest.approx(50, abs=1e-2)
    finally:
        env.close()


@every_algorithm
def test_a_subclass_of_the_vectorised_environment(cls):
    """Its ``step_wait`` is called, and keeps its say."""

    class Doubles(DummyVecEnv):
        def step_wait(self):
            observations, rewards, dones, infos = super().step_wait()
            return observations, 0 * rewards + 2, dones, infos

    found = []
    for each in (cls, PPO):
        model = small(each, Doubles([lambda: PointEnv(length=1000)] * 2))
        model.learn(16)
        found.append(np.unique(model.rollout_buffer.rewards).tolist())
    assert found[0] == found[1] == [2.0]


@every_algorithm
def test_environments_made_by_sb3(cls):
    env = make_vec_env(
        "Pendulum-v1",
        2,
        seed=0,
        env_kwargs={"g": 5.0},
        wrapper_class=gym.wrappers.ClipReward,
        wrapper_kwargs={"min_reward": -1, "max_reward": 0},
    )
    model = small(cls, env)
    model.learn(16)
    assert model.get_env() is env
    assert (np.abs(model.rollout_buffer.rewards) <= 1).all()
    assert env.get_attr("g") == [5.0, 5.0]


@every_algorithm
def test_the_environment_can_be_used_after_the_training(cls):
    """Nothing is left on it: it steps as before, and can be closed."""
    env = vec_env(2)
    small(cls, env).learn(16)
    assert "step_wait" not in vars(env)
    env.reset()
    observations, *_ = env.step(np.zeros((2, 3), np.float32))
    assert observations.shape == (2, 3)
    env.close()
