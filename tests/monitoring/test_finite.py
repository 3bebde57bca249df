"""An environment that returns numbers that are not finite is named, before anything is learned from them."""

import re

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize
from support import BrokenEnv, make_model, vec_env

from sb3_trl import PAPI, TRPL, FixPO, LeanPPO, LeanTRPO
from sb3_trl.monitoring.finite import FiniteCheckCallback
from sb3_trl.rollouts.collection import can_collect

EVERY_ENV = pytest.mark.parametrize(
    ("observation", "normalize"), [("box", False), ("box", True), ("dict", False), ("dict", True)]
)


def broken_model(what: str, at: int | None, observation: str = "box", normalize: bool = False, **kwargs):
    """A model on two environments, of which the second is broken."""
    value = kwargs.pop("value", np.nan)
    env = vec_env(2, BrokenEnv, what=what, at=at, value=value, observation=observation)
    env.envs[0].unwrapped.what = "nothing"
    if normalize:
        env = VecNormalize(env, norm_obs_keys=["goal", "time"] if observation == "dict" else None)
    return make_model(env, "MultiInputPolicy" if observation == "dict" else "MlpPolicy", **kwargs)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("what", ["observation", "reward"])
@EVERY_ENV
def test_names_the_environment_and_the_step(what, observation, normalize, value):
    model = broken_model(what, 5, observation, normalize, value=value)
    with pytest.raises(ValueError, match=f"Environment 1 returned a non-finite {what} at step 5 of the rollout") as e:
        model.learn(256)
    assert "(timestep 10)" in str(e.value)
    assert str(value) in str(e.value)


def test_counts_steps_from_the_start_of_the_rollout():
    model = broken_model("reward", 20, n_steps=16, batch_size=16)
    with pytest.raises(ValueError, match=r"at step 4 of the rollout \(timestep 40\)"):
        model.learn(256)


@EVERY_ENV
def test_names_the_environment_that_cannot_reset(observation, normalize):
    with pytest.raises(ValueError, match=r"Environment 1 returned a non-finite observation on reset"):
        broken_model("reset", None, observation, normalize).learn(256)


@EVERY_ENV
def test_names_the_environment_whose_last_observation_is_bootstrapped(observation, normalize):
    with pytest.raises(ValueError, match=r"Environment 1 returned a non-finite last observation .* at step 10"):
        broken_model("last", None, observation, normalize).learn(256)


def test_no_policy_acts_on_a_broken_observation():
    model = broken_model("observation", 5)
    with pytest.raises(ValueError, match="non-finite observation"):
        model.learn(256)
    assert np.isfinite(model.rollout_buffer.observations).all()
    assert model.rollout_buffer.pos == 4
    assert all(p.isfinite().all() for p in model.policy.parameters())


class Witness(BaseCallback):
    def _on_step(self) -> bool:
        assert np.isfinite(self.locals["rewards"]).all(), "saw a broken reward"
        return True


def test_is_asked_before_every_other_callback():
    with pytest.raises(ValueError, match="non-finite reward"):
        broken_model("reward", 3).learn(256, callback=[Witness()])


def test_finite_numbers_and_images_pass():
    broken_model("reward", None).learn(128)
    images = make_model(
        vec_env(1, observation="image"),
        "CnnPolicy",
        n_steps=8,
        batch_size=8,
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}},
    )
    assert images.learn(8).num_timesteps == 8


def test_works_with_other_algorithms():
    env = vec_env(1, BrokenEnv, what="reward", at=3)
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, device="cpu")
    with pytest.raises(ValueError, match="Environment 0 returned a non-finite reward at step 3"):
        model.learn(64, callback=FiniteCheckCallback())


# --- every algorithm, with rollouts of either kind ---


class FloatImages(BrokenEnv):
    """Its images are of floating-point numbers."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.observation_space = spaces.Box(0.0, 1.0, (1, 36, 36), np.float32)

    def _observe(self) -> np.ndarray:
        return np.full((1, 36, 36), super()._observe()[0] > 0, np.float32)


def model_on_broken_env(cls: type, observation: str, is_lean: bool, **kwargs):
    """A model on two environments, of which the second is broken; without ``is_lean``, with SB3's own rollouts."""
    images, dicts = observation == "image", observation == "dict"
    env_class, observation = (FloatImages, "box") if images else (BrokenEnv, observation)
    env = vec_env(2, env_class, observation=observation, **kwargs)
    env.envs[0].unwrapped.what = "nothing"
    buffer = DictRolloutBuffer if dicts else RolloutBuffer
    policy = "CnnPolicy" if images else "MultiInputPolicy" if dicts else "MlpPolicy"
    features = {"normalize_images": False, "features_extractor_kwargs": {"features_dim": 4}} if images else {}
    model = cls(
        policy,
        env,
        n_steps=16,
        batch_size=32,
        rollout_buffer_class=None if is_lean else type("OwnBuffer", (buffer,), {}),
        policy_kwargs={"net_arch": [4], **features},
        device="cpu",
    )
    assert can_collect(model) == is_lean
    return model


BREAKS = [
    ("observation", 5, np.nan, "observation at step 5 of the rollout (timestep 10)"),
    ("reward", 20, -np.inf, "reward at step 4 of the rollout (timestep 40)"),
    ("reset", None, np.inf, "observation on reset (timestep 0)"),
    ("last", None, np.nan, "last observation of an episode at step 10 of the rollout (timestep 20)"),
]


@pytest.mark.parametrize(("what", "at", "value", "message"), BREAKS, ids=[what for what, *_ in BREAKS])
@pytest.mark.parametrize("observation", ["box", "dict", "image"])
@pytest.mark.parametrize("is_lean", [True, False], ids=["lean", "usual"])
@pytest.mark.parametrize("cls", [TRPL, FixPO, PAPI, LeanPPO, LeanTRPO])
def test_a_broken_environment_is_named(cls, is_lean, observation, what, at, value, message):
    model = model_on_broken_env(cls, observation, is_lean, what=what, at=at, value=value)
    with pytest.raises(ValueError, match=re.escape(f"Environment 1 returned a non-finite {message}: ")) as error:
        model.learn(96)
    assert str(value) in str(error.value)
    assert all(p.isfinite().all() for p in model.policy.parameters())
