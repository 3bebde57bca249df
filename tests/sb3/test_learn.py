"""``learn`` and the arguments of the constructors: what SB3's PPO does on the same call is done."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.monitor import Monitor
from support import (
    ACTION_SPACES,
    ALGORITHMS,
    ActionEnv,
    FixPO,
    LeanPPO,
    PointEnv,
    all_equal,
    both,
    parameters,
    small,
    vec_env,
)

from sb3_trl import PAPI, TRPL, LeanTRPO

every_algorithm = pytest.mark.parametrize("cls", ALGORITHMS)


@every_algorithm
@pytest.mark.parametrize("total", [0, -5, 1, 16, 17, 33.0])
def test_timesteps(cls, total):
    """Whole rollouts, none for nothing; and the model itself is returned."""

    def call(each):
        model = small(each, vec_env(2))
        assert model.learn(total) is model
        return model.num_timesteps, model._n_updates, model._total_timesteps, model._current_progress_remaining

    ours, expected = both(cls, call)
    assert ours == expected


@every_algorithm
def test_learning_in_pieces(cls):
    """Timesteps, progress and schedules go on or start again, and the environment is reset when SB3 resets it."""

    class ResetCounter(PointEnv):
        resets = 0

        def reset(self, **kwargs):
            ResetCounter.resets += 1
            return super().reset(**kwargs)

    def call(each):
        ResetCounter.resets = 0
        asked: list[float] = []
        model = small(
            each, vec_env(2, ResetCounter, length=1000), learning_rate=lambda p: asked.append(p) or 1e-3 * p + 1e-9
        )
        found = []
        for reset in (True, False, False, True):
            asked.clear()
            model.learn(32, reset_num_timesteps=reset)
            rate = model.policy.optimizer.param_groups[0]["lr"]
            found.append(
                (model.num_timesteps, model._n_updates, ResetCounter.resets, rate, sorted({*asked} - {0.0, 1.0}))
            )
        return found

    ours, expected = both(cls, call)
    assert ours == expected
    assert [timesteps for timesteps, *_ in ours] == [32, 64, 96, 32]


@every_algorithm
def test_pieces_are_a_whole(cls):
    """With constant rates, two trainings without a reset are one of twice the length."""

    def parameters_after(*pieces):
        model = small(cls, vec_env(2), learning_rate=1e-3)
        for k, piece in enumerate(pieces):
            model.learn(piece, reset_num_timesteps=k == 0)
        return parameters(model)

    assert all_equal(parameters_after(64), parameters_after(32, 32))


# --- arguments ---

SIZES = [
    {"n_steps": 8, "batch_size": 8},
    {"n_steps": 8, "batch_size": 16},
    {"n_steps": 8, "batch_size": 5},
    {"n_steps": 8, "batch_size": 15},
    {"n_steps": 1, "batch_size": 2},
    {"n_steps": 3, "batch_size": 4},
]


@every_algorithm
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes(cls, sizes):
    """Minibatches that do not fill the rollout are taken, the last one smaller, down to a single state."""

    def call(each):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = small(each, vec_env(2), **sizes)
            model.learn(2 * sizes["n_steps"] * 2)
        assert all(p.isfinite().all() for p in model.policy.parameters())
        return model.num_timesteps, model.rollout_buffer.buffer_size, model._n_updates

    ours, expected = both(cls, call)
    assert ours == expected


@every_algorithm
def test_one_state_in_all(cls):
    """Is refused as PPO refuses it, where advantages are normalised."""

    def call(each):
        return small(each, vec_env(1), n_steps=1, batch_size=2).learn(2).num_timesteps

    ours, expected = both(cls, call)
    assert expected is AssertionError
    assert ours in (AssertionError, ValueError)


@every_algorithm
def test_minibatches_of_one_state_are_refused_where_advantages_are_normalised(cls):
    def call(each):
        small(each, vec_env(2), batch_size=1).learn(16)

    ours, expected = both(cls, call)
    assert expected is AssertionError
    assert ours in (AssertionError, ValueError)


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_a_truncated_minibatch_is_warned_of(cls):
    def call(each):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            small(each, vec_env(2), batch_size=5)
        return ["truncated mini-batch" in str(warning.message) for warning in caught]

    ours, expected = both(cls, call)
    assert ours == expected == [True]


@every_algorithm
def test_strings_are_environments(cls):
    def call(each):
        model = small(each, "Pendulum-v1")
        env = model.get_env()
        assert env.env_is_wrapped(Monitor) == [True]
        model.learn(8)
        return type(env), env.num_envs, model.num_timesteps, model.get_vec_normalize_env()

    ours, expected = both(cls, call)
    assert ours == expected
    ours, expected = both(cls, lambda each: small(each, "NoSuchEnv-v0"))
    assert ours is expected is gym.error.NameNotFound


@every_algorithm
def test_no_environment(cls):
    """A model without one can be made but not set up, as with PPO."""

    def call(each):
        model = each("MlpPolicy", None, _init_setup_model=False, device="cpu")
        return model.get_env(), hasattr(model, "policy"), hasattr(model, "observation_space")

    ours, expected = both(cls, call)
    assert ours == expected
    ours, expected = both(cls, lambda each: each("MlpPolicy", None, device="cpu"))
    assert ours is expected is AttributeError


@every_algorithm
@pytest.mark.parametrize("device", ["cpu", "auto", th.device("cpu"), "nonsense"])
def test_devices(cls, device):
    def call(each):
        return small(each, device=device).learn(8).policy.device

    ours, expected = both(cls, call)
    assert ours == expected


# --- state-dependent exploration ---


@pytest.mark.parametrize("cls", [FixPO, LeanPPO, LeanTRPO])
@pytest.mark.parametrize(
    "kwargs", [{}, {"sde_sample_freq": 3}, {"policy_kwargs": {"use_expln": True, "full_std": False}}], ids=str
)
def test_gsde(cls, kwargs):
    def call(each):
        model = small(each, vec_env(2), use_sde=True, **kwargs)
        model.learn(32)
        model.policy.reset_noise(2)
        actions, _ = model.predict(np.zeros((2, 3), np.float32))
        return actions.shape, model.policy.log_std.shape, model.policy.use_sde

    ours, expected = both(cls, call)
    assert ours == expected
    refused = both(cls, lambda each: small(each, ActionEnv(ACTION_SPACES["discrete"]), use_sde=True))
    assert refused == [ValueError, ValueError]


@pytest.mark.parametrize("cls", [TRPL, PAPI])
def test_gsde_is_not_available(cls):
    """Trust region layers project Gaussians in the action."""
    with pytest.raises(TypeError, match="use_sde"):
        small(cls, use_sde=True)
