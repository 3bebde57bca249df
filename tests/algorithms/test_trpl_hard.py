"""TRPL's hard trust region: it holds at every state, by further steps or by going back."""

import pytest
import torch as th
from support import (
    SHARED,
    LinearExtractor,
    PointEnv,
    all_equal,
    collect,
    distances,
    gaussian,
    make_model,
    parameters,
    train_and_record,
    update,
    vec_env,
)

from sb3_trl import TRPL

from .trpl_cases import FAST, PROJECTIONS, SCALES, every_projection, every_scale


def hard_updates(model: TRPL, updates: int) -> list[dict[str, float]]:
    """Update a few times; check at every state of every batch that the policy which acts obeys the bounds."""
    logs = []
    projection = PROJECTIONS[model.projection]()
    for i in range(updates):
        rollout = collect(model)
        old = gaussian(model, rollout.observations)
        logs.append(update(model, seed=i))
        mean, cov = distances(projection, gaussian(model, rollout.observations), old)
        if model.projection == "joint_kl":
            assert (mean + cov <= 0.03 + 1e-3).all()
        else:
            assert (mean <= 0.03).all()
            assert (cov <= 1e-3).all()
        assert logs[-1]["trust_region/violation_fraction"] == 0.0
    return logs


@every_projection
@every_scale
@pytest.mark.parametrize(("env", "learning_rate"), [("point", 5e-3), ("pendulum", 5e-4)])
def test_a_hard_trust_region_holds_everywhere(kind, scale, env, learning_rate):
    def make(hard: bool) -> TRPL:
        env_ = PointEnv() if env == "point" else "Pendulum-v1"
        settings = {"learning_rate": learning_rate, "policy_kwargs": SCALES[scale], "n_epochs": 4}
        return make_model(env_, projection=kind, hard=hard, **settings)

    logs = hard_updates(make(hard=True), 2)
    assert all(log["trust_region/kl_mean"] > 0 for log in logs)
    if env == "point":
        assert max(log["trust_region/hard_steps"] for log in logs) > 0
        # Without it the same updates leave the trust region.
        assert max(log["trust_region/violation_fraction"] for log in train_and_record(make(hard=False), 2)) > 0.1


@every_projection
@pytest.mark.parametrize("kwargs", [*SCALES.values(), SHARED], ids=[*SCALES, "shared"])
def test_rolls_back_where_steps_do_not_suffice(kind, kwargs):
    model = make_model(projection=kind, hard=True, max_hard_steps=1, policy_kwargs=kwargs, learning_rate=3e-2)
    logs = hard_updates(model, 2)
    rollbacks = [log["trust_region/rollbacks"] for log in logs]
    assert rollbacks == sorted(rollbacks)
    assert rollbacks[-1] >= 1
    assert all(log["trust_region/hard_steps"] <= 1 for log in logs)


def test_holds_for_fifty_updates_with_a_learning_rate_ten_times_too_high():
    settings = {"n_steps": 64, "batch_size": 16, "n_epochs": 4, "learning_rate": 5e-4, "projection": "kl"}
    logs = hard_updates(make_model("HalfCheetah-v5", hard=True, **settings), 50)
    assert sum(log["trust_region/hard_steps"] for log in logs) > 0


def test_rolls_back_the_statistics_of_normalising_layers_too():
    extractor = {"features_extractor_class": LinearExtractor, "features_extractor_kwargs": {"batch_norm": True}}
    model = make_model(hard=True, max_hard_steps=1, learning_rate=1e-1, projection="kl", policy_kwargs=extractor)
    with th.no_grad():
        model.policy.action_net.weight.mul_(100)
    logs = train_and_record(model, 3)
    assert [log["trust_region/violation_fraction"] for log in logs] == [0.0] * 3
    assert logs[-1]["trust_region/rollbacks"] > 0


def test_a_rollback_leaves_the_critic_alone():
    critics = []
    for hard in (False, True):
        model = make_model(hard=hard, max_hard_steps=1, learning_rate=3e-2)
        collect(model)
        log = update(model)
        critics.append([p.detach() for p in model.policy.critic_parameters()])
    assert log["trust_region/rollbacks"] == 1
    assert all(th.equal(p, q) for p, q in zip(*critics, strict=True))


def test_a_rollback_restarts_the_optimiser_of_the_policy():
    model = make_model(hard=True, max_hard_steps=1, learning_rate=3e-2)
    collect(model)
    assert update(model)["trust_region/rollbacks"] == 1
    assert not model.policy.optimizer.state
    assert model.policy.critic_optimizer.state


def test_a_hard_trust_region_with_entropy_first():
    kwargs = {"entropy_schedule": "exp", "target_entropy": 3.0, "entropy_equality": True, "entropy_first": True}
    hard_updates(make_model(hard=True, **kwargs, **FAST), 3)


def test_a_hard_trust_region_with_regression_and_several_environments():
    hard_updates(make_model(vec_env(3), hard=True, n_regression_epochs=2, **FAST), 2)


def test_a_policy_inside_its_bounds_takes_no_hard_steps():
    plain = make_model(learning_rate=1e-5)
    plain.learn(128)
    hard = make_model(learning_rate=1e-5, hard=True)
    _, log = train_and_record(hard, 2)
    assert (log["trust_region/hard_steps"], log["trust_region/rollbacks"]) == (0, 0)
    assert all_equal(parameters(plain), parameters(hard))
