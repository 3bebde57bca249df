"""Learning rates and bounds, given as numbers, strings, functions or one for each state."""

import numpy as np
import pytest
import torch as th

from sb3_trl import StateBound
from sb3_trl.schedules import as_bound, as_schedule, bound_at

PROGRESS = [1.0, 0.75, 0.5, 0.1, 0.0]


@pytest.mark.parametrize("value", [3e-4, 1, np.float64(0.5), np.float32(0.5)])
def test_numbers_are_constant(value):
    schedule = as_schedule("learning_rate", value)
    assert {schedule(p) for p in PROGRESS} == {float(value)}


def test_linear_strings_fall_to_zero():
    schedule = as_schedule("learning_rate", "lin_3e-4")
    np.testing.assert_allclose([schedule(p) for p in PROGRESS], [3e-4 * p for p in PROGRESS], atol=1e-18)


def test_callables_are_asked_for_the_remaining_progress():
    schedule = as_schedule("learning_rate", lambda p: np.float32(p**2))
    assert [schedule(p) for p in PROGRESS] == pytest.approx([p**2 for p in PROGRESS])
    assert isinstance(schedule(0.5), float)
    assert as_schedule("learning_rate", schedule)(0.5) == 0.25


@pytest.mark.parametrize("value", ["lin_", "lin_x", "exp_0.1", "0.03", "lin", "", "linear_0.1"])
def test_other_strings_are_refused(value):
    with pytest.raises(ValueError, match=r"learning_rate='.*' is no schedule: give a number, 'lin_<number>'"):
        as_schedule("learning_rate", value)


@pytest.mark.parametrize("value", [None, True, [0.1], {"a": 1}])
def test_other_types_are_refused(value):
    with pytest.raises(TypeError, match=f"cov_bound=.* is a {type(value).__name__}: give a number"):
        as_schedule("cov_bound", value)


@pytest.mark.parametrize("value", [-1e-3, "lin_-0.1", lambda p: -p, np.nan, np.inf])
def test_negative_and_infinite_rates_are_refused(value):
    with pytest.raises(ValueError, match=r"critic_learning_rate=.* must be finite and not negative"):
        as_schedule("critic_learning_rate", value)


@pytest.mark.parametrize("value", [0, 0.0, -0.1, "lin_0", "lin_-1", lambda p: 1 - p, np.nan, np.inf])
def test_bounds_must_be_positive(value):
    with pytest.raises(ValueError, match=r"mean_bound=.* must be positive and finite"):
        as_bound("mean_bound", value)


def test_bounds_follow_their_schedule_and_stay_positive():
    observations = th.zeros(4, 2)
    assert bound_at(as_bound("mean_bound", 0.03), 0.2, observations) == 0.03
    bound = as_bound("mean_bound", "lin_0.04")
    assert bound_at(bound, 0.5, observations) == pytest.approx(0.02)
    assert 0 < bound_at(bound, 0.0, observations) < 1e-9
    assert bound_at(as_bound("cov_bound", lambda p: p**2), 0.5, observations) == 0.25


def test_a_bound_that_stops_being_a_number_is_refused():
    bound = as_bound("mean_bound", lambda p: 0.1 if p == 1 else float("nan"))
    with pytest.raises(ValueError, match=r"is not a number at progress_remaining=0.5"):
        bound_at(bound, 0.5, None)


def test_a_tensor_of_one_bound_is_a_number():
    assert bound_at(as_bound("mean_bound", th.tensor(0.25)), 1.0, None) == 0.25


def test_a_tensor_of_bounds_is_refused():
    with pytest.raises(ValueError, match=r"cov_bound is a tensor of 3 bounds.*give a StateBound"):
        as_bound("cov_bound", th.ones(3))


@pytest.mark.parametrize("dictionary", [False, True])
def test_state_bounds_see_the_observations(dictionary):
    key = (lambda obs: obs["a"]) if dictionary else (lambda obs: obs)
    bound = as_bound("mean_bound", StateBound(lambda obs: 0.1 * (1 + key(obs)[:, 0].abs())))
    values = th.randn(5, 2)
    observations = {"a": values, "b": th.zeros(5, 1)} if dictionary else values
    assert th.equal(bound_at(bound, 0.3, observations), 0.1 * (1 + values[:, 0].abs()))


def test_state_bounds_carry_no_gradient():
    weight = th.ones(1, requires_grad=True)
    assert not StateBound(lambda obs: weight * obs[:, 0])(th.ones(3, 2)).requires_grad


@pytest.mark.parametrize(
    "function", [lambda obs: th.ones(len(obs), 1), lambda obs: th.tensor(0.1), lambda obs: 0.1, lambda obs: th.ones(2)]
)
def test_a_state_bound_needs_one_number_per_state(function):
    with pytest.raises(ValueError, match=r"returned shape .* for 5 observations; return one bound per state"):
        StateBound(function)(th.zeros(5, 2))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_state_bounds_must_be_positive(value):
    with pytest.raises(ValueError, match="every bound must be positive"):
        StateBound(lambda obs: th.full((len(obs),), value))(th.zeros(5, 2))
