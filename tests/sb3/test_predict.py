"""``predict`` of every algorithm against that of SB3's PPO with the same network."""

from functools import cache

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecTransposeImage
from support import ACTION_SPACES, ALGORITHMS, ActionEnv, FixPO, LeanPPO, PointEnv, small, vec_env

from sb3_trl import LeanTRPO

every_algorithm = pytest.mark.parametrize("cls", [*ALGORITHMS, LeanTRPO])
POLICIES = {"dict": "MultiInputPolicy", "image": "CnnPolicy"}
FEATURES = {"image": {"features_extractor_kwargs": {"features_dim": 4}}}


@cache
def models(cls, observation: str = "box") -> list:
    """Return a model and PPO's on environments with that observation."""
    policy_kwargs = FEATURES.get(observation, {})
    return [
        small(
            each,
            PointEnv(observation=observation),
            POLICIES.get(observation, "MlpPolicy"),
            policy_kwargs=policy_kwargs,
        )
        for each in (cls, PPO)
    ]


def outcome(model, observation, **kwargs):
    """Return what ``predict`` does: the kind of its error, or its result's shape and type."""
    try:
        action, state = model.predict(observation, **kwargs)
    except Exception as error:
        return type(error)
    return np.shape(action), np.asarray(action).dtype, state


@every_algorithm
@pytest.mark.parametrize("observation", ["box", "dict", "image", "discrete", "multi_discrete", "multi_binary"])
def test_one_and_many_observations(cls, observation):
    """One observation has one action without an axis of environments, many have an axis."""
    results = []
    for model in models(cls, observation):
        one = model.observation_space.sample()
        many = {key: np.stack([x] * 3) for key, x in one.items()} if isinstance(one, dict) else np.stack([one] * 3)
        for deterministic in (True, False):
            results.append(outcome(model, one, deterministic=deterministic))
            results.append(outcome(model, many, deterministic=deterministic))
        alone, together = (model.predict(x, deterministic=True)[0] for x in (one, many))
        np.testing.assert_allclose(together, np.stack([alone] * 3), rtol=1e-4, atol=1e-6)
    assert results[:4] == results[4:]
    assert all(isinstance(result, tuple) for result in results)


@pytest.mark.parametrize("cls", [FixPO, LeanPPO, LeanTRPO])
@pytest.mark.parametrize("space", ACTION_SPACES)
def test_action_spaces(cls, space):
    found = []
    for each in (cls, PPO):
        model = small(each, ActionEnv(ACTION_SPACES[space]))
        found.append([outcome(model, np.zeros(shape, np.float32)) for shape in ((4,), (3, 4))])
        assert model.action_space.contains(model.predict(np.zeros(4, np.float32))[0])
    assert found[0] == found[1]


@every_algorithm
@pytest.mark.parametrize(
    "given",
    [
        np.zeros(7, np.float32),
        np.zeros((2, 7), np.float32),
        np.zeros((2, 2, 3), np.float32),
        np.zeros((), np.float32),
        np.zeros(3, np.float64),
        np.zeros(3, np.int64),
        [0.0, 0.0, 0.0],
        {"goal": np.zeros(3)},
        (np.zeros(3), {}),
        th.zeros(3),
        None,
    ],
    ids=lambda x: f"{type(x).__name__} {np.shape(x) if not isinstance(x, (dict, tuple)) else ''}",
)
@pytest.mark.parametrize("deterministic", [True, False])
def test_odd_observations(cls, given, deterministic):
    ours, expected = (outcome(model, given, deterministic=deterministic) for model in models(cls))
    assert ours == expected


@every_algorithm
def test_images_in_either_order_of_the_axes(cls):
    """As the environment has them, and as the policy sees them."""
    model, ppo = models(cls, "image")
    image = PointEnv(observation="image").observation_space.sample()
    for x in (image, VecTransposeImage.transpose_image(image), image[None], np.zeros((36, 36, 2), np.uint8)):
        assert outcome(model, x) == outcome(ppo, x)
    given, transposed = (model.predict(x, deterministic=True)[0] for x in (image, np.transpose(image, (2, 0, 1))))
    assert np.array_equal(given, transposed)


@every_algorithm
def test_images_that_are_normalised_already(cls):
    """``normalize_images=False`` takes numbers between 0 and 1 as they are."""

    class Normalised(PointEnv):
        def __init__(self):
            super().__init__(observation="image")
            self.observation_space = spaces.Box(0.0, 1.0, (1, 36, 36), np.float32)

        def _observe(self):
            return (super()._observe().transpose(2, 0, 1) / 255).astype(np.float32)

    features = {"features_extractor_kwargs": {"features_dim": 4}}
    floats = small(cls, Normalised(), "CnnPolicy", policy_kwargs={"normalize_images": False, **features})
    bytes_ = small(cls, PointEnv(observation="image"), "CnnPolicy", policy_kwargs=features)
    bytes_.policy.load_state_dict(floats.policy.state_dict())
    image = bytes_.observation_space.sample()
    expected, _ = bytes_.predict(image, deterministic=True)
    np.testing.assert_allclose(
        floats.predict((image / 255).astype(np.float32), deterministic=True)[0], expected, atol=1e-5
    )
    floats.learn(8)


@every_algorithm
def test_actions_are_within_their_bounds(cls):
    class Narrow(PointEnv):
        def __init__(self):
            super().__init__((2,))
            self.action_space = spaces.Box(np.float32([-0.01, 0.5]), np.float32([0.02, 4.0]))

    model = small(cls, Narrow())
    actions, _ = model.predict(np.zeros((50, 2), np.float32))
    assert all(model.action_space.contains(action) for action in actions)
    assert (actions == model.action_space.low).any()


@every_algorithm
def test_prediction_draws_what_the_policy_draws(cls):
    """Deterministic actions are always the same; random ones follow torch's generator, as SB3's."""
    model = small(cls)
    observation = np.zeros(3, np.float32)
    assert np.array_equal(*(model.predict(observation, deterministic=True)[0] for _ in range(2)))
    drawn = []
    for seed in (1, 1, 2):
        model.set_random_seed(seed)
        drawn.append(model.predict(observation)[0].tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@every_algorithm
def test_prediction_leaves_nothing_behind(cls):
    """States are handed through, networks are in evaluation mode, and no gradient is kept."""
    model = small(cls)
    state = (np.ones(2),)
    assert model.predict(np.zeros(3, np.float32), state=state, episode_start=np.ones(1, bool))[1] is state
    assert not model.policy.training
    assert all(p.grad is None for p in model.policy.parameters())
    env = vec_env(2)
    small(cls, env).predict(env.reset())
