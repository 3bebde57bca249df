import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize
from support import BrokenEnv, PointEnv, collect, make_model, vec_env

from sb3_trl.monitoring.finite import FiniteCheckCallback
from sb3_trl.projections import Gaussian
from sb3_trl.rollouts.rollout import Rollout, rollout_from_buffer
from sb3_trl.table import chunks, table

# --- the rollout as tensors ---


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
    for name in Rollout._fields:
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


# --- passes over it ---


def numbered(n: int) -> tuple:
    """Nested tensors with their row number in every entry."""
    rows = th.arange(n)
    rollout = Rollout({"a": rows, "b": rows.unsqueeze(-1)}, rows, rows, rows, rows, rows)
    return rollout, Gaussian(rows.float().unsqueeze(-1), std=th.ones(1)), None


def epoch(data: tuple, size: int) -> list[tuple]:
    """The minibatches of one epoch."""
    whole = table(data)
    return [whole.part(rows) for rows in whole.shuffled().split(size)]


@pytest.mark.parametrize(("n", "size"), [(10, 5), (10, 3), (10, 10), (10, 16), (1, 1)])
def test_an_epoch_holds_every_row_once(n, size):
    seen, sizes = [], []
    for rollout, gaussian, nothing in epoch(numbered(n), size):
        assert isinstance(rollout, Rollout)
        assert nothing is None
        for column in (rollout.observations["a"], rollout.observations["b"][:, 0], rollout.returns):
            assert th.equal(column, rollout.actions)
        assert th.equal(gaussian.mean[:, 0].long(), rollout.actions)
        seen += rollout.actions.tolist()
        sizes.append(len(rollout.actions))
    assert sorted(seen) == list(range(n))
    assert sizes[:-1] == [min(size, n)] * (len(sizes) - 1)


def test_epochs_are_shuffled_anew():
    first, second = ([b[0].actions.tolist() for b in epoch(numbered(50), 10)] for _ in range(2))
    assert first != second
    assert [x for batch in first for x in batch] != list(range(50))


def test_chunks_keep_the_order():
    parts = [part[0].actions.tolist() for part in chunks(numbered(10), 4)]
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


# --- numbers that are not finite ---

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


def test_advantages_are_those_of_gae():
    model = make_model(PointEnv(), n_steps=32)
    rollout = collect(model)
    rewards, starts = (x.flatten() for x in (model.rollout_buffer.rewards, model.rollout_buffer.episode_starts))
    values = np.append(rollout.old_values.numpy(), model.policy.predict_values(th.as_tensor(model._last_obs)).item())
    alive = 1 - np.append(starts[1:], model._last_episode_starts)
    advantage, expected = 0.0, np.zeros(32)
    for i in reversed(range(32)):
        delta = rewards[i] + model.gamma * alive[i] * values[i + 1] - values[i]
        advantage = expected[i] = delta + model.gamma * model.gae_lambda * alive[i] * advantage
    np.testing.assert_allclose(rollout.advantages.numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rollout.returns.numpy(), expected + values[:-1], rtol=1e-4, atol=1e-5)
