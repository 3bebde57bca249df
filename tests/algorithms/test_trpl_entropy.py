"""TRPL's control of the entropy."""

import math

import numpy as np
import pytest
import torch as th
from support import collect, gaussian, make_model, train_and_record, update

from .trpl_cases import FAST, SCALES


def hand_entropy_bound(kind: str, progress: float, initial: float, kappa: float, temperature: float) -> float:
    target = 3 * kappa
    if kind == "linear":
        return initial + progress * (target - initial)
    return target + (initial - target) * temperature ** (10 * progress)


INITIAL = 3 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.5))


@pytest.mark.parametrize("kind", ["exp", "linear"])
@pytest.mark.parametrize("equality", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("scale", ["diag", "full"])
def test_entropy_obeys_its_bound(kind, equality, first, scale):
    # A target above the initial entropy, so that the bound binds all the time.
    arguments = {"target_entropy": 0.9, "temperature": 0.8, "entropy_equality": equality, "entropy_first": first}
    policy_kwargs = SCALES[scale] | {"init_std": 0.5}
    model = make_model(entropy_schedule=kind, policy_kwargs=policy_kwargs, cov_bound=0.01, **arguments, **FAST)
    for i, log in enumerate(train_and_record(model, 4)):
        bound = hand_entropy_bound(kind, (i + 1) / 4, INITIAL, 0.9, 0.8)
        assert log["trust_region/entropy_bound"] == pytest.approx(bound, rel=1e-6)
        entropy, distance = log["trust_region/entropy"], log["trust_region/cov_distance_max"]
        if first:
            assert distance <= 0.01
            continue
        assert entropy >= bound - 1e-5
        if equality:
            assert entropy == pytest.approx(bound, abs=1e-5)


@pytest.mark.parametrize("first", [False, True])
def test_the_order_decides_which_constraint_has_the_last_word(first):
    # The equality asks for far more entropy than the trust region admits.
    arguments = {"target_entropy": 3.0, "temperature": 0.1, "entropy_equality": True, "entropy_first": first}
    (log,) = train_and_record(make_model(entropy_schedule="exp", **arguments, **FAST), 1)
    entropy_holds = abs(log["trust_region/entropy"] - log["trust_region/entropy_bound"]) < 1e-5
    region_holds = log["trust_region/cov_distance_max"] <= 1e-3
    assert (entropy_holds, region_holds) == (not first, first)


def test_an_inequality_leaves_larger_entropies_alone():
    def final_entropy(**kwargs) -> float:
        (log,) = train_and_record(make_model(target_entropy=-5.0, temperature=0.1, **kwargs), 1)
        return log["trust_region/entropy"]

    free, bounded = final_entropy(), final_entropy(entropy_schedule="exp")
    assert free == bounded
    assert final_entropy(entropy_schedule="exp", entropy_equality=True) < free - 1


@pytest.mark.parametrize("kind", ["kl", "w2", "frobenius"])
@pytest.mark.parametrize("scale", ["diag contextual", "full contextual"])
def test_contextual_entropy_is_controlled_inside_the_loss(kind, scale):
    model = make_model(
        projection=kind, entropy_schedule="exp", target_entropy=0.9, policy_kwargs=SCALES[scale] | {"init_std": 0.5}
    )
    rollout = collect(model)
    policy = model.policy.get_distribution(rollout.observations)
    bound = policy.entropy().max().item() + 0.01
    projected = policy.projected(model.trust_region_layer, policy, entropy_bound=bound)
    th.testing.assert_close(projected.entropy(), th.full((64,), bound), rtol=1e-5, atol=1e-5)
    logs = train_and_record(model, 3)
    initial = policy.entropy().mean().item()
    assert logs[0]["trust_region/entropy_bound"] == pytest.approx(
        hand_entropy_bound("exp", 1 / 3, initial, 0.9, 0.5), rel=1e-4
    )
    assert all(np.isfinite(log["trust_region/entropy"]) for log in logs)


@pytest.mark.parametrize("equality", [False, True])
def test_the_joint_projection_controls_entropy_inside_the_ball(equality):
    kwargs = {"entropy_schedule": "linear", "target_entropy": 1.45, "entropy_equality": equality}
    model = make_model(projection="joint_kl", hard=True, entropy_first=True, **kwargs, **FAST)
    logs = train_and_record(model, 3)
    for log in logs:
        assert log["trust_region/violation_fraction"] == 0
    free = train_and_record(make_model(projection="joint_kl", hard=True, **FAST), 3)
    assert logs[-1]["trust_region/entropy"] > free[-1]["trust_region/entropy"]


def test_the_initial_entropy_is_that_of_the_first_batch():
    model = make_model(entropy_schedule="exp", policy_kwargs={"init_std": 0.5} | SCALES["diag contextual"], **FAST)
    assert not model.trust_region_layer.has_initial_entropy
    rollout = collect(model)
    expected = gaussian(model, rollout.observations).entropy().mean()
    for seed in range(2):
        update(model, seed)
        th.testing.assert_close(model.trust_region_layer.initial_entropy, expected, rtol=1e-6, atol=1e-6)
        collect(model)
