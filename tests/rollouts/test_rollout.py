"""The rollout as tensors: what SB3's buffer holds, once."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from support import collect, make_model, vec_env

from sb3_trl.rollouts.rollout import Rollout, rollout_from_buffer


@pytest.mark.parametrize("observation", ["box", "dict"])
@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_holds_what_the_buffer_holds(observation, shape):
    alias = "MultiInputPolicy" if observation == "dict" else "MlpPolicy"
    model = make_model(vec_env(3, shape=shape, observation=observation), alias, n_steps=8, batch_size=4)
    rollout = collect(model)
    buffer = model.rollout_buffer
    assert not buffer.generator_ready
    # Row env·n_steps + step is what environment ``env`` saw at ``step``.
    for env, step in [(0, 0), (1, 5), (2, 7)]:
        row = env * 8 + step
        observed = rollout.observations["goal"] if observation == "dict" else rollout.observations
        expected = buffer.observations["goal"] if observation == "dict" else buffer.observations
        np.testing.assert_array_equal(observed[row].numpy(), expected[step, env])
        np.testing.assert_array_equal(rollout.actions[row].numpy(), buffer.actions[step, env])
        for tensor, array in [
            (rollout.old_values, buffer.values),
            (rollout.old_log_prob, buffer.log_probs),
            (rollout.advantages, buffer.advantages),
            (rollout.returns, buffer.returns),
        ]:
            assert tensor.shape == (24,)
            assert tensor[row].item() == array[step, env]


def test_is_the_same_after_the_buffer_was_read_by_sb3():
    model = make_model(vec_env(2))
    before = collect(model)
    next(model.rollout_buffer.get(16))
    after = rollout_from_buffer(model.rollout_buffer)
    assert before.tasks is after.tasks is None
    for name in set(Rollout._fields) - {"tasks"}:
        assert th.equal(getattr(before, name), getattr(after, name)), name


DTYPES = [(np.float64, th.float32), (np.float32, th.float32), (np.uint8, th.uint8)]


@pytest.mark.parametrize(("given", "expected"), DTYPES)
def test_observations_are_in_the_precision_of_the_networks(given, expected):
    """What SB3's policies make of float64 in every minibatch; images stay small."""
    space = spaces.Box(0, 9, (2,), given)
    buffer = RolloutBuffer(4, space, spaces.Box(-1, 1, (1,)), device="cpu")
    buffer.observations[:] = np.arange(4).reshape(4, 1, 1)
    buffer.full = True
    observations = rollout_from_buffer(buffer).observations
    assert observations.dtype == expected
    assert observations[:, 1].tolist() == [0, 1, 2, 3]


def test_is_a_copy():
    model = make_model()
    rollout = collect(model)
    rollout.actions.zero_()
    assert (model.rollout_buffer.actions != 0).any()


def test_old_values_and_log_probabilities_are_the_policies():
    model = make_model(policy_kwargs={"covariance": "full", "contextual_std": True})
    rollout = collect(model)
    values, log_prob, _ = model.policy.evaluate_actions(rollout.observations, rollout.actions)
    th.testing.assert_close(values.flatten(), rollout.old_values, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(log_prob, rollout.old_log_prob, rtol=1e-4, atol=1e-5)
