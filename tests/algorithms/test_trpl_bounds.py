"""Learning rates and bounds of TRPL over time, and bounds of single states."""

import pytest
import torch as th
from support import collect, distances, gaussian, make_model, train_and_record, update, vec_env

from sb3_trl import TRPL, StateBound
from sb3_trl.projections import KLProjection

from .trpl_cases import FAST, PROJECTIONS, SCALES, every_projection


@pytest.mark.parametrize(
    ("given", "expected"),
    [(3e-4, [3e-4] * 4), ("lin_1e-3", [7.5e-4, 5e-4, 2.5e-4, 0.0]), (lambda p: p**2, [9 / 16, 4 / 16, 1 / 16, 0.0])],
)
def test_learning_rates_reach_the_optimisers(given, expected):
    model = make_model(learning_rate=given, critic_learning_rate=1e-3)
    other = make_model(learning_rate=1e-3, critic_learning_rate=given)
    seen, other_seen = [], []
    for m, kept in ((model, seen), (other, other_seen)):
        m.train = lambda m=m, kept=kept: (
            TRPL.train(m),
            kept.append((m.policy.optimizer.param_groups[0]["lr"], m.policy.critic_optimizer.param_groups[0]["lr"])),
        )
    if callable(given):
        model.learning_rate = other.critic_learning_rate = given
    model.learn(256)
    other.learn(256)
    assert [rate for rate, _ in seen] == pytest.approx(expected)
    assert [rate for _, rate in seen] == [1e-3] * 4
    assert [rate for _, rate in other_seen] == pytest.approx(expected)
    assert [rate for rate, _ in other_seen] == [1e-3] * 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.02, [0.02] * 4),
        ("lin_0.04", [0.03, 0.02, 0.01, 1e-12]),
        (lambda p: 0.01 + 0.01 * p, [0.0175, 0.015, 0.0125, 0.01]),
    ],
    ids=["float", "string", "callable"],
)
def test_bounds_follow_their_schedules(given, expected):
    model = make_model(mean_bound=given, learning_rate=1e-3)
    logs = train_and_record(model, 4)
    assert [log["trust_region/mean_bound"] for log in logs] == pytest.approx(expected, abs=1e-11)
    model = make_model(cov_bound=given, **FAST)
    for log, bound in zip(train_and_record(model, 4), expected, strict=True):
        assert log["trust_region/cov_bound"] == pytest.approx(bound, abs=1e-11)
        assert log["trust_region/cov_distance_max"] <= log["trust_region/cov_bound"]


def test_a_bound_that_falls_to_nothing_stops_the_standard_deviation():
    model = make_model(cov_bound="lin_0.01", **FAST)
    model.learn(64)
    std = model.policy.gaussian(th.zeros(1, 3)).scale.detach()
    th.testing.assert_close(std, th.ones(3), rtol=0, atol=2e-6)


def test_bounds_of_a_projection_are_the_default():
    own = KLProjection(mean_bound=0.01, cov_bound=5e-5)
    (log,) = train_and_record(make_model(projection=own, **FAST), 1)
    assert (log["trust_region/mean_bound"], log["trust_region/cov_bound"]) == (0.01, 5e-5)
    assert 0.9 * 5e-5 < log["trust_region/cov_distance_max"] <= 5e-5
    (log,) = train_and_record(make_model(projection=own, cov_bound=1e-4, **FAST), 1)
    assert (log["trust_region/mean_bound"], log["trust_region/cov_bound"]) == (0.01, 1e-4)
    assert 0.9e-4 < log["trust_region/cov_distance_max"] <= 1e-4


def wide_or_narrow(observations: th.Tensor) -> th.Tensor:
    return th.where(observations[:, 0] > 0, 0.1, 0.005)


@every_projection
@pytest.mark.parametrize("scale", ["diag contextual", "full contextual"])
def test_state_bounds_bound_each_state_by_its_own_number(kind, scale):
    # Only the covariance bound of the joint projection counts besides: together they bound one distance.
    bounds = {"mean_bound": StateBound(wide_or_narrow), "cov_bound": StateBound(lambda obs: 0.1 * wide_or_narrow(obs))}
    model = make_model(
        projection=kind, hard=True, policy_kwargs=SCALES[scale], **bounds, **(FAST | {"learning_rate": 2e-3})
    )
    largest = 0.0
    for i in range(4):
        rollout = collect(model)
        old, bound = gaussian(model, rollout.observations), wide_or_narrow(rollout.observations).double()
        log = update(model, seed=i)
        mean, cov = distances(PROJECTIONS[kind](), gaussian(model, rollout.observations), old)
        assert log["trust_region/violation_fraction"] == 0
        if kind == "joint_kl":
            assert (mean + cov <= 1.1 * bound).all()
        else:
            assert (mean <= bound).all()
            assert (cov <= 0.1 * bound).all()
        largest = max(largest, mean.max().item())
        assert log["trust_region/mean_bound"] == pytest.approx(bound.mean().item(), rel=1e-5)
    assert largest > 0.005, "no state used more than the narrow bound"


def test_the_smallest_state_bound_counts_for_a_non_contextual_scale():
    model = make_model(cov_bound=StateBound(wide_or_narrow), **FAST)
    (log,) = train_and_record(model, 1)
    assert log["trust_region/cov_bound"] == pytest.approx(0.005)
    assert 0 < log["trust_region/cov_distance_max"] <= log["trust_region/cov_bound"]


def test_state_bounds_see_what_the_policy_sees():
    seen = []

    def bound(observations: dict[str, th.Tensor]) -> th.Tensor:
        seen.append({key: value.shape for key, value in observations.items()})
        return 0.01 + 0.01 * observations["time"][:, 0]

    model = make_model(vec_env(2, observation="dict"), "MultiInputPolicy", mean_bound=StateBound(bound))
    (log,) = train_and_record(model, 1)
    assert seen == [{"goal": (128, 3), "time": (128, 1), "sign": (128, 1)}]
    assert 0.01 < log["trust_region/mean_bound"] < 0.02
