"""LeanTRPO has the habits of sb3-contrib's TRPO."""

import inspect

import numpy as np
import pytest
from sb3_contrib import TRPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize
from support import ACTION_SPACES, ActionEnv, all_equal, copy_rollout, parameters, small, update, vec_env

from sb3_trl import LeanTRPO


def test_the_arguments_are_those_of_sb3_contrib():
    assert inspect.signature(LeanTRPO) == inspect.signature(TRPO)
    assert LeanTRPO.policy_aliases == TRPO.policy_aliases


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_updates_are_those_of_sb3_contrib(space):
    """With one rollout, bit for bit; and they log the same."""
    env = vec_env(2, ActionEnv, action_space=ACTION_SPACES[space])
    lean, usual = (small(cls, env, n_critic_updates=2, cg_max_steps=5) for cls in (LeanTRPO, TRPO))
    assert all_equal(parameters(lean), parameters(usual))
    total, callback = lean._setup_learn(64, None)
    usual._setup_learn(64, None)
    for seed in range(2):
        lean.collect_rollouts(lean.env, callback, lean.rollout_buffer, lean.n_steps)
        lean._update_current_progress_remaining(lean.num_timesteps, total)
        copy_rollout(lean, usual)
        before, log, expected = parameters(lean), update(lean, seed), update(usual, seed)
        assert all_equal(parameters(lean), parameters(usual))
        assert not all_equal(parameters(lean), before)
        assert {key: log[key] for key in expected} == pytest.approx(expected)


def test_what_is_saved_goes_on(tmp_path):
    model = small(LeanTRPO, VecNormalize(vec_env(2)), learning_rate=1e-2)
    model.learn(48)
    model.save(tmp_path / "model")
    for cls in (LeanTRPO, TRPO):
        loaded = cls.load(tmp_path / "model", env=model.env, device="cpu")
        assert all_equal(parameters(loaded), parameters(model))
        assert loaded.learning_rate == 1e-2
        loaded.learn(16, reset_num_timesteps=False)
        assert loaded.num_timesteps == 64


def test_one_seed_is_one_training(tmp_path):
    def trained(seed):
        model = small(LeanTRPO, vec_env(2), seed=seed)
        model.set_logger(configure(str(tmp_path / str(seed)), ["csv"]))
        model.learn(48)
        return parameters(model), model.rollout_buffer.rewards.copy()

    (first, rewards), (second, same_rewards), (other, _) = map(trained, (1, 1, 2))
    assert all_equal(first, second)
    assert np.array_equal(rewards, same_rewards)
    assert not all_equal(first, other)


@pytest.mark.parametrize(
    "kwargs", [{"batch_size": 5}, {"sub_sampling_factor": 2}, {"n_steps": 1, "batch_size": 2}], ids=str
)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_sizes(kwargs):
    found = []
    for cls in (LeanTRPO, TRPO):
        model = small(cls, vec_env(2), **kwargs)
        model.learn(32)
        found.append((model.num_timesteps, model._n_updates))
    assert found[0] == found[1]
