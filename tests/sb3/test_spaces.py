"""TRPL trains in every space of observations and with every shape of actions."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize, VecTransposeImage
from support import PointEnv, all_equal, make_model, parameters, train_and_record, vec_env

SMALL_CNN = {"features_extractor_kwargs": {"features_dim": 8}}


def alias(observation: str) -> str:
    return {"dict": "MultiInputPolicy", "image": "CnnPolicy"}.get(observation, "MlpPolicy")


def check_training(model, updates: int = 2) -> None:
    """Updates move the actor and the critic, stay finite, and obey the covariance bound."""
    before = parameters(model)
    logs = train_and_record(model, updates)
    after = parameters(model)
    for layer in ("action_net.weight", "value_net.weight"):
        assert not th.equal(before[layer], after[layer])
    assert all(value.isfinite().all() for value in after.values())
    for log in logs:
        assert log["trust_region/cov_distance_max"] <= log["trust_region/cov_bound"]
        assert log["trust_region/kl_mean"] > 0
    assert model.num_timesteps == updates * model.n_steps * model.n_envs


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("observation", ["box", "dict", "image", "discrete", "multi_discrete", "multi_binary"])
def test_observation_spaces(observation, n_envs):
    kwargs = {"policy_kwargs": SMALL_CNN} if observation == "image" else {}
    env = vec_env(n_envs, observation=observation)
    model = make_model(env, alias(observation), n_steps=32, **kwargs)
    check_training(model)
    observations = env.reset()
    actions, _ = model.predict(observations, deterministic=True)
    assert actions.shape == (n_envs, 3)


@pytest.mark.parametrize("kwargs", [{}, {"covariance": "full", "contextual_std": True}], ids=["diag", "full"])
@pytest.mark.parametrize("shape", [(1,), (2, 2), (2, 1, 3)])
def test_action_shapes(shape, kwargs):
    model = make_model(vec_env(2, shape=shape), policy_kwargs=kwargs)
    model.learn(128)
    action, _ = model.predict(model.env.reset())
    assert action.shape == (2, *shape)
    assert model.policy.gaussian(th.zeros(4, int(np.prod(shape)))).dim == np.prod(shape)


class NarrowEnv(PointEnv):
    """Its actions are bounded differently in each dimension, and it insists on that."""

    def __init__(self) -> None:
        super().__init__(shape=(2,))
        self.action_space = spaces.Box(np.float32([-0.1, 0.5]), np.float32([0.2, 4.0]))
        self.seen: list[np.ndarray] = []

    def step(self, action):
        self.seen.append(action)
        return super().step(action)


def test_actions_are_clipped_to_the_space_and_remembered_as_drawn():
    env = NarrowEnv()
    model = make_model(env)
    model.learn(64)
    seen, drawn = np.array(env.seen), model.rollout_buffer.actions.reshape(64, 2)
    np.testing.assert_array_equal(seen, np.clip(drawn, env.action_space.low, env.action_space.high))
    assert (seen != drawn).any()


@pytest.mark.parametrize("observation", ["box", "dict"])
def test_normalised_observations_and_rewards(observation):
    kwargs = {"norm_obs_keys": ["goal", "time"]} if observation == "dict" else {}
    env = VecNormalize(vec_env(2, observation=observation), clip_obs=1.0, **kwargs)
    model = make_model(env, alias(observation))
    check_training(model)
    observations = model.rollout_buffer.observations
    goals = observations["goal"] if observation == "dict" else observations
    assert np.abs(goals).max() == 1.0
    assert env.obs_rms["goal"].count > 128 if observation == "dict" else env.obs_rms.count > 128


def test_stacked_images_are_transposed():
    env = VecFrameStack(vec_env(2, observation="image"), 2)
    model = make_model(env, "CnnPolicy", n_steps=16, batch_size=16, policy_kwargs=SMALL_CNN)
    assert isinstance(model.env, VecTransposeImage)
    check_training(model, updates=1)
    assert model.rollout_buffer.observations.shape[-3:] == (2, 36, 36)


@pytest.mark.parametrize("kwargs", [{}, {"covariance": "full"}], ids=["diag", "full"])
def test_float64_boxes_are_no_trouble(kwargs):
    class DoubleEnv(PointEnv):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float64)
            self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float64)

        def _observe(self):
            return super()._observe().astype(np.float64)

    model = make_model(DoubleEnv(), policy_kwargs=kwargs)
    check_training(model)
    assert model.policy.gaussian(th.zeros(2, 3, dtype=th.float64)).mean.dtype == th.float32


def test_environments_of_gymnasium():
    model = make_model(gym.make("Pendulum-v1"))
    check_training(model)
    named = make_model("Pendulum-v1")
    train_and_record(named, 2)
    assert all_equal(parameters(model), parameters(named))
