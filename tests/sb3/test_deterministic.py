"""One seed, one training; and what is random follows the seed as with SB3."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from support import ALGORITHMS, PointEnv, all_equal, parameters, small, vec_env

every_algorithm = pytest.mark.parametrize("cls", ALGORITHMS)


def trained(cls: type, seed: int | None, env=None, **kwargs):
    """Return parameters, rewards and actions of a training."""
    model = small(cls, vec_env(2) if env is None else env, seed=seed, **kwargs)
    model.learn(48)
    return parameters(model), model.rollout_buffer.rewards.copy(), model.rollout_buffer.actions.copy()


def equal(a, b) -> bool:
    return all_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) and np.array_equal(a[2], b[2])


@every_algorithm
@pytest.mark.parametrize("kwargs", [{}, {"rollout_buffer_kwargs": {}, "stats_window_size": 3}])
def test_a_seed_decides_everything(cls, kwargs):
    first = trained(cls, 7, **kwargs)
    th.rand(5)
    np.random.rand(5)  # noqa: NPY002
    assert equal(first, trained(cls, 7, **kwargs))
    other = trained(cls, 8, **kwargs)
    assert not np.array_equal(first[1], other[1])
    assert not all_equal(first[0], other[0])


@every_algorithm
def test_without_a_seed_trainings_differ(cls):
    assert not equal(trained(cls, None), trained(cls, None))


@every_algorithm
def test_evaluations_of_one_seed_agree(cls):
    results = []
    for _ in range(2):
        model = small(cls, make_vec_env(PointEnv, 2, seed=3), seed=3)
        model.learn(32)
        env = make_vec_env(PointEnv, 1, seed=5)
        results.append(evaluate_policy(model, env, n_eval_episodes=3, deterministic=False, return_episode_rewards=True))
    assert results[0] == results[1]


@every_algorithm
def test_the_seed_reaches_environments_and_spaces(cls):
    """As SB3's: the environments' seeds are those behind it, and the action space draws the same."""

    class SeedEnv(PointEnv):
        seeds: list[int | None] = []  # noqa: RUF012

        def reset(self, *, seed=None, options=None):
            SeedEnv.seeds.append(seed)
            return super().reset(seed=seed, options=options)

    found = []
    for each in (cls, PPO):
        SeedEnv.seeds.clear()
        model = small(each, vec_env(2, SeedEnv), seed=11)
        model.learn(16)
        first = list(SeedEnv.seeds)
        model.set_random_seed(20)
        model.env.reset()
        drawn = model.action_space.sample().tolist()
        found.append((first, list(SeedEnv.seeds), drawn, np.random.rand(), th.rand(1).item()))  # noqa: NPY002
    assert found[0] == found[1]
    assert found[0][1][-2:] == [20, 21]
    assert found[0][0][:2] == [11, 12]


@every_algorithm
def test_learning_again_goes_on_with_the_random_numbers(cls):
    """A second training of one model is another, as with SB3, and two models agree on both."""
    models = [small(cls, vec_env(2)) for _ in range(2)]
    for model in models:
        th.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        model.learn(16)
        model.learn(16)
    assert all_equal(parameters(models[0]), parameters(models[1]))
