"""TRPL refuses bad input before training starts, in words that say how to mend it."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from support import PointEnv, collect, make_model, update, vec_env

from sb3_trl import PAPI, TRPL, FixPO, StateBound, TRPLPolicy
from sb3_trl.projections import KLProjection


class DiscreteActionsEnv(PointEnv):
    def __init__(self, action_space: spaces.Space) -> None:
        super().__init__()
        self.action_space = action_space


VALUE_ERRORS = [
    ({"projection": "wassertein"}, r"projection='wassertein' is unknown: choose one of .*'w2'.*, None, or pass a"),
    ({"mean_bound": 0.0}, r"mean_bound=0.0 must be positive"),
    ({"mean_bound": -0.03}, r"mean_bound=-0.03 must be positive"),
    ({"cov_bound": 0}, r"cov_bound=0 must be positive"),
    ({"cov_bound": -1e-3}, r"cov_bound=-0.001 must be positive"),
    ({"cov_bound": float("nan")}, r"cov_bound=nan must be positive"),
    ({"mean_bound": "lin_0"}, r"mean_bound=lin_0 must be positive"),
    ({"mean_bound": "lin-0.03"}, r"mean_bound='lin-0.03' is no schedule: give a number, 'lin_<number>' or a callable"),
    ({"cov_bound": "exp_0.1"}, r"cov_bound='exp_0.1' is no schedule"),
    ({"learning_rate": "3e-4"}, r"learning_rate='3e-4' is no schedule"),
    ({"critic_learning_rate": "lin_fast"}, r"critic_learning_rate='lin_fast' is no schedule"),
    ({"learning_rate": -1e-3}, r"learning_rate=-0.001 .* not negative"),
    ({"critic_learning_rate": -1e-3}, r"critic_learning_rate=-0.001 .* not negative"),
    ({"n_steps": 16, "batch_size": 17}, r"batch_size=17 is larger than the rollout: n_steps \* n_envs = 16 \* 1 = 16"),
    ({"n_epochs": 0}, r"n_epochs=0 must be at least 1"),
    ({"n_steps": 0}, r"n_steps=0 must be at least 1"),
    ({"batch_size": 0}, r"batch_size=0 must be at least 1"),
    ({"n_critic_epochs": -1}, r"n_critic_epochs=-1 must"),
    ({"n_regression_epochs": -1}, r"n_regression_epochs=-1 must"),
    ({"entropy_schedule": "cosine"}, r"entropy_schedule='cosine' is unknown: choose 'exp', 'linear' or None"),
    ({"entropy_schedule": "exp", "temperature": 0.0}, r"temperature=0.0 must be in \(0, 1\]"),
    ({"entropy_schedule": "exp", "temperature": 1.5}, r"temperature=1.5 must be in \(0, 1\]"),
    ({"trust_region_coef": -8.0}, r"trust_region_coef=-8.0 must not be negative"),
    ({"projection": None, "hard": True}, r"hard=True needs a trust region: choose a projection"),
    ({"projection": None, "mean_bound": 0.03}, r"mean_bound=0.03 needs a trust region: choose a projection"),
    ({"projection": None, "n_regression_epochs": 2}, r"n_regression_epochs=2 needs a trust region"),
    ({"entropy_equality": True}, r"entropy_equality=True needs entropy control: choose an entropy_schedule"),
    ({"entropy_first": True}, r"entropy_first=True needs entropy control"),
    ({"hard": True, "max_hard_steps": -1}, r"max_hard_steps=-1 must be at least"),
    ({"hard": True, "entropy_schedule": "exp"}, r"hard=True .*set entropy_first=True"),
    ({"policy_kwargs": {"covariance": "diagonal"}}, r"covariance='diagonal' is unknown: choose 'diag' or 'full'"),
    ({"policy_kwargs": {"init_std": 0.0}}, r"init_std=0.0 and min_std=1e-05: 0 < min_std < init_std is needed"),
    ({"policy_kwargs": {"contextual": True}}, r"policy_kwargs has 'contextual'.*did you mean 'contextual_std'"),
    ({"policy_kwargs": {"netarch": [64]}}, r"policy_kwargs has 'netarch'.*did you mean 'net_arch'"),
    ({"policy_kwargs": {"log_std_init": -2.0}}, r"policy_kwargs has 'log_std_init', which .* does not know.*init_std"),
    ({"policy_kwargs": {"squash_output": True}}, r"policy_kwargs has 'squash_output', which TRPLPolicy does not know"),
    ({"policy_kwargs": {"use_sde": True}}, r"use_sde"),
    ({"policy": "MlpLstmPolicy"}, r"Policy MlpLstmPolicy unknown"),
]


@pytest.mark.parametrize(("kwargs", "message"), VALUE_ERRORS, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_values(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_model(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mean_bound": [0.03]}, r"mean_bound=\[0.03\] is a list: give a number"),
        ({"cov_bound": True}, r"cov_bound=True is a bool: give a number"),
        ({"learning_rate": None}, r"learning_rate=None is a NoneType: give a number"),
        ({"use_sde": True}, r"use_sde"),
    ],
)
def test_types(kwargs, message):
    with pytest.raises(TypeError, match=message):
        make_model(**kwargs)


def test_the_rollout_counts_every_environment():
    with pytest.raises(ValueError, match=r"batch_size=64 is larger than the rollout: .* = 16 \* 3 = 48"):
        make_model(vec_env(3), n_steps=16, batch_size=64)
    assert make_model(vec_env(3), n_steps=16, batch_size=48).batch_size == 48


@pytest.mark.parametrize("cls", [TRPL, FixPO, PAPI])
def test_what_was_trained_in_many_environments_acts_in_one(cls, tmp_path):
    """As where a film is made of it; in one alone it cannot train, and says so."""
    model = cls("MlpPolicy", vec_env(4), n_steps=16, batch_size=64, n_epochs=1, device="cpu").learn(64)
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=vec_env(1), device="cpu")
    observation = loaded.env.reset()
    actions, expected = (m.predict(observation, deterministic=True)[0] for m in (loaded, model))
    assert np.array_equal(actions, expected)
    with pytest.raises(ValueError, match=r"batch_size=64 is larger than the rollout: .* = 16 \* 1 = 16"):
        loaded.learn(64)


def test_a_policy_without_a_gaussian():
    with pytest.raises(ValueError, match=r"ActorCriticPolicy has no distribution that can be projected: use"):
        TRPL(ActorCriticPolicy, PointEnv())


def test_arguments_of_a_policy_of_ones_own_are_known():
    class Wide(TRPLPolicy):
        def __init__(self, *args, width: int = 8, **kwargs):
            super().__init__(*args, net_arch=[width], **kwargs)

    model = make_model(policy=Wide, policy_kwargs={"width": 5, "contextual_std": True})
    assert model.policy.mlp_extractor.latent_dim_pi == 5
    with pytest.raises(ValueError, match="did you mean 'width'"):
        make_model(policy=Wide, policy_kwargs={"widht": 5})


@pytest.mark.parametrize("bounds", [(0.0, 1e-3), (0.03, -1.0)])
def test_bounds_of_a_projection(bounds):
    with pytest.raises(ValueError, match=r"_bound=.* must be positive"):
        KLProjection(*bounds)


def test_a_projection_with_a_bound_for_each_state():
    with pytest.raises(ValueError, match=r"mean_bound is a tensor of 64 bounds.*StateBound"):
        make_model(projection=KLProjection(mean_bound=th.full((64,), 0.1)))


def test_state_bounds_are_checked_with_the_first_rollout():
    model = make_model(mean_bound=StateBound(lambda obs: th.ones(3)))
    collect(model)
    with pytest.raises(ValueError, match=r"returned shape \(3,\) for 64 observations"):
        update(model)


def test_an_error_costs_no_step_of_the_environment():
    class CountingEnv(PointEnv):
        steps_in_all = 0

        def step(self, action):
            CountingEnv.steps_in_all += 1
            return super().step(action)

    for kwargs, _ in VALUE_ERRORS[:6]:
        with pytest.raises(ValueError, match=r"must be positive|unknown"):
            make_model(CountingEnv(), **kwargs).learn(64)
    assert CountingEnv.steps_in_all == 0


def test_an_unknown_environment():
    with pytest.raises(gym.error.NameNotFound):
        TRPL("MlpPolicy", "NoSuchEnv-v0")


def test_parameters_that_are_not_finite_stop_training():
    model = make_model(learning_rate=1e38, critic_learning_rate=1e38)
    with pytest.raises(FloatingPointError, match=r"not finite after \d+ timesteps. Lower the learning rate"):
        model.learn(64 * 5)


def test_observations_of_another_shape():
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        make_model().predict(np.zeros(7, np.float32))


def test_continuing_with_another_number_of_environments():
    with pytest.raises(AssertionError, match="number of environments"):
        make_model(vec_env(2)).set_env(vec_env(3))
