"""Observations and actions of every space that Gymnasium has: what PPO takes is taken, what PPO refuses is refused."""

from functools import cache

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from support import ALGORITHMS, FixPO, LeanPPO, small, vec_env

from sb3_trl import PAPI, TRPL, LeanTRPO

IMAGE = {"features_extractor_kwargs": {"features_dim": 4}}

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
OBSERVATIONS = {
    "box of no dimension": spaces.Box(-1.0, 1.0, (), np.float32),
    "box of one": spaces.Box(-1.0, 1.0, (1,), np.float32),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3), np.float32),
    "cube": spaces.Box(-1.0, 1.0, (2, 3, 2), np.float32),
    "float64": spaces.Box(-1.0, 1.0, (2,), np.float64),
    "float16": spaces.Box(-1.0, 1.0, (2,), np.float16),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "int64": spaces.Box(-5, 5, (2,), np.int64),
    "uint8": spaces.Box(0, 255, (3,), np.uint8),
    "empty": spaces.Box(-1.0, 1.0, (0,), np.float32),
    "discrete": spaces.Discrete(3),
    "discrete from 2": spaces.Discrete(3, start=2),
    "discrete from -1": spaces.Discrete(3, start=-1),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-discrete matrix": spaces.MultiDiscrete([[3, 2], [2, 2]]),
    "multi-discrete from 1": spaces.MultiDiscrete([3, 2], start=[1, 1]),
    "multi-binary": spaces.MultiBinary(3),
    "multi-binary matrix": spaces.MultiBinary((2, 2)),
    "images, channel last": spaces.Box(0, 255, (36, 36, 3), np.uint8),
    "images, channel first": spaces.Box(0, 255, (3, 36, 36), np.uint8),
    "images that are small": spaces.Box(0, 255, (8, 8, 3), np.uint8),
    "images of floats": spaces.Box(0.0, 1.0, (3, 36, 36), np.float32),
    "dict": spaces.Dict(
        {"a": BOX, "b": spaces.Discrete(2), "c": spaces.MultiDiscrete([2, 2]), "d": spaces.MultiBinary(2)}
    ),
    "dict of an image": spaces.Dict({"a": BOX, "image": spaces.Box(0, 255, (36, 36, 3), np.uint8)}),
    "dict of both orders": spaces.Dict(
        {"a": spaces.Box(0, 255, (36, 36, 3), np.uint8), "b": spaces.Box(0, 255, (3, 36, 36), np.uint8)}
    ),
    "dict of one": spaces.Dict({"a": BOX}),
    "empty dict": spaces.Dict({}),
    "dict in a dict": spaces.Dict({"a": BOX, "b": spaces.Dict({"c": BOX})}),
    "tuple": spaces.Tuple((BOX, BOX)),
    "text": spaces.Text(3),
    "sequence": spaces.Sequence(BOX),
}
ACTIONS = {
    "box": BOX,
    "box of no dimension": spaces.Box(-1.0, 1.0, (), np.float32),
    "matrix": spaces.Box(-1.0, 1.0, (2, 3), np.float32),
    "float64": spaces.Box(-1.0, 1.0, (2,), np.float64),
    "integers": spaces.Box(-5, 5, (2,), np.int64),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "half bounded": spaces.Box(0.0, np.inf, (2,), np.float32),
    "discrete": spaces.Discrete(3),
    "discrete from 2": spaces.Discrete(3, start=2),
    "discrete of one": spaces.Discrete(1),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-discrete matrix": spaces.MultiDiscrete([[3, 2], [2, 2]]),
    "multi-binary": spaces.MultiBinary(3),
    "multi-binary matrix": spaces.MultiBinary((2, 2)),
    "dict": spaces.Dict({"a": BOX}),
    "tuple": spaces.Tuple((BOX, BOX)),
}


class AnyEnv(gym.Env):
    """Observations are drawn, and the actions it gets are kept."""

    def __init__(self, observation_space: spaces.Space = BOX, action_space: spaces.Space = BOX) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.actions: list = []

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(0)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.actions.append(action)
        self.steps += 1
        return self.observation_space.sample(), float(self.steps), False, self.steps == 5, {}


#: Policies and observations: everything for flat networks, and what others might take or must refuse.
CASES = [
    *[("MlpPolicy", name) for name in OBSERVATIONS],
    *[("CnnPolicy", name) for name in OBSERVATIONS if "image" in name or name in ("box of one", "dict of one")],
    *[("MultiInputPolicy", name) for name in OBSERVATIONS if "dict" in name or name in ("box of one", "tuple")],
]


@cache
def outcome_of_ppo(policy: str = "MlpPolicy", observation: str = "matrix", action: str = "box"):
    """Return what becomes of the same training with PPO."""
    return outcome(PPO, policy, observation_space=OBSERVATIONS[observation], action_space=ACTIONS[action])


def outcome(cls: type, policy: str = "MlpPolicy", **kwargs):
    """Return what becomes of a training and a prediction: the kind of an error, or of actions and the buffer."""
    has_images = policy == "CnnPolicy"
    try:
        env = vec_env(2, AnyEnv, **kwargs)
        model = small(cls, env, policy, policy_kwargs=IMAGE if has_images else {})
        model.learn(16)
        action, _ = model.predict(env.reset())
    except Exception as error:
        return type(error)
    taken = {(np.shape(a), np.asarray(a).dtype) for a in env.envs[0].unwrapped.actions}
    buffer = model.rollout_buffer
    arrays = buffer.observations if isinstance(buffer.observations, dict) else {"": buffer.observations}
    kept = {key: (array.size, array.dtype) for key, array in arrays.items()}
    return taken, action.shape, action.dtype, buffer.actions.size, kept


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize(("policy", "name"), CASES)
def test_observations(cls, policy, name):
    assert outcome(cls, policy, observation_space=OBSERVATIONS[name]) == outcome_of_ppo(policy, name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls", [TRPL, FixPO, LeanPPO, LeanTRPO])
@pytest.mark.parametrize("name", ACTIONS)
def test_actions(cls, name):
    ours = outcome(cls, observation_space=OBSERVATIONS["matrix"], action_space=ACTIONS[name])
    assert ours == outcome_of_ppo(action=name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ACTIONS)
def test_actions_of_papi(name):
    """A ``Box`` as PPO takes it, and no other."""
    expected = outcome_of_ppo(action=name) if isinstance(ACTIONS[name], spaces.Box) else ValueError
    assert outcome(PAPI, observation_space=OBSERVATIONS["matrix"], action_space=ACTIONS[name]) == expected
