import copy
import inspect
import math
from itertools import product

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from support import (
    KINDS,
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
from torch.distributions import MultivariateNormal, kl_divergence

from sb3_trl import TRPL, StateBound
from sb3_trl.projections import (
    FrobeniusProjection,
    Gaussian,
    JointKLProjection,
    KLProjection,
    Projection,
    TrustRegionLayer,
    WassersteinProjection,
)
from sb3_trl.rollouts.rollout import Rollout

PROJECTIONS = {
    "kl": KLProjection,
    "w2": WassersteinProjection,
    "frobenius": FrobeniusProjection,
    "joint_kl": JointKLProjection,
}
SCALES = {
    f"{covariance}{' contextual' * contextual}": {"covariance": covariance, "contextual_std": contextual}
    for covariance, contextual in product(("diag", "full"), (False, True))
}
every_scale = pytest.mark.parametrize("scale", SCALES)
every_projection = pytest.mark.parametrize("kind", KINDS)

#: Learning rates at which two epochs leave the trust region by far.
FAST = {"learning_rate": 1e-2, "n_epochs": 3, "batch_size": 16}


def sgd_model(**kwargs) -> TRPL:
    """A model whose epochs are single steps of plain gradient descent on the whole rollout."""
    sgd = {"optimizer_class": th.optim.SGD}
    kwargs["policy_kwargs"] = sgd | kwargs.get("policy_kwargs", {})
    return make_model(**({"batch_size": 64, "n_epochs": 4, "learning_rate": 0.3, "critic_learning_rate": 0.1} | kwargs))


# --- the loss ---


def hand_projection_w2(new: Gaussian, old: Gaussian, mean_bound: float, cov_bound: float) -> Gaussian:
    """Eqs 6 and 9 for diagonal covariances."""
    mean_distance = ((new.mean - old.mean) / old.std).square().sum(-1, keepdim=True)
    cov_distance = (new.std / old.std - 1).square().sum(-1, keepdim=True)
    mean_weight = (mean_bound / mean_distance.clamp(min=mean_bound)).sqrt()
    cov_weight = (cov_bound / cov_distance.clamp(min=cov_bound)).sqrt()
    return Gaussian(old.mean + mean_weight * (new.mean - old.mean), old.std + cov_weight * (new.std - old.std))


def hand_penalty(kind: str, new: Gaussian, target: Gaussian) -> th.Tensor:
    """d(π, sg π̃) of eq. 12, the covariance part for contextual scales only."""
    whitened = th.linalg.solve_triangular(target.scale_tril, (new.mean - target.mean).unsqueeze(-1), upper=False)
    mean = whitened.square().sum((-1, -2))
    if kind in ("kl", "joint_kl"):
        p, q = (MultivariateNormal(target.mean, scale_tril=g.scale_tril) for g in (new, target))
        cov, mean = kl_divergence(p, q), mean / 2
    elif kind == "w2":
        assert new.is_diagonal
        cov = ((new.std - target.std) / target.std).square().sum(-1)
    else:
        cov = (new.scale - target.scale).square().sum(-1 if new.is_diagonal else (-1, -2))
    return mean + cov if new.is_contextual else mean


def hand_update(model: TRPL, rollout: Rollout) -> tuple[dict[str, th.Tensor], dict[str, float]]:
    """Minimise eq. 12 by hand, as ``sgd_model`` does; return the parameters and how active the projection was."""
    policy = copy.deepcopy(model.policy)
    old = policy.gaussian(rollout.observations).detach()
    projection = PROJECTIONS[model.projection](model.mean_bound or 0.03, model.cov_bound or 1e-3)
    advantages = rollout.advantages
    if model.normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    actors = policy.actor_parameters() + (policy.critic_parameters() if policy.shares_parameters else [])
    actors = list(dict.fromkeys(actors))
    fractions = []
    for _ in range(model.n_epochs):
        new = policy.gaussian(rollout.observations)
        projected = projection(new, old)
        if model.projection == "w2" and new.is_diagonal:
            projected = hand_projection_w2(new, old, projection.mean_bound, projection.cov_bound)
        tril = projected.scale_tril.expand(*projected.mean.shape, projected.dim)
        distribution = MultivariateNormal(projected.mean, scale_tril=tril)
        ratio = th.exp(distribution.log_prob(rollout.actions) - rollout.old_log_prob)
        penalty = hand_penalty(model.projection, new, projected.detach())
        loss = -(ratio * advantages).mean() + model.trust_region_coef * penalty.mean()
        loss = loss - model.ent_coef * distribution.entropy().mean()
        if policy.shares_parameters:
            values = policy.predict_values(rollout.observations).flatten()
            loss = loss + model.vf_coef * (values - rollout.returns).square().mean()
        fractions.append((penalty > 0).double().mean().item())
        gradients = th.autograd.grad(loss, actors)
        norm = th.linalg.vector_norm(th.stack([g.double().norm() for g in gradients]))
        factor = 1.0 if model.max_grad_norm is None else min(1.0, model.max_grad_norm / (norm.item() + 1e-6))
        with th.no_grad():
            for p, gradient in zip(actors, gradients, strict=True):
                p -= model.lr_schedule(0) * factor * gradient
    final = policy.gaussian(rollout.observations)
    if not final.is_contextual and model.projection != "joint_kl":
        policy.set_scale(projection(final, old).scale.detach())
    return policy.state_dict(), {"first": fractions[0], "last": fractions[-1]}


@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        ("kl", "diag"),
        ("kl", "diag contextual"),
        ("kl", "full contextual"),
        ("w2", "diag"),
        ("w2", "diag contextual"),
        ("frobenius", "diag"),
        ("frobenius", "diag contextual"),
        ("frobenius", "full"),
        ("joint_kl", "diag contextual"),
    ],
)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"normalize_advantage": False, "ent_coef": 0.1, "learning_rate": 0.05},
        {"max_grad_norm": 0.05, "learning_rate": 3.0, "trust_region_coef": 2.0},
        {"policy_kwargs": SHARED, "vf_coef": 0.3},
    ],
    ids=["default", "entropy bonus", "clipped", "shared"],
)
def test_minimises_equation_12(kind, scale, kwargs):
    policy_kwargs = SCALES[scale] | kwargs.get("policy_kwargs", {})
    model = sgd_model(projection=kind, mean_bound=0.01, **(kwargs | {"policy_kwargs": policy_kwargs}))
    rollout = collect(model)
    before = parameters(model)
    expected, active = hand_update(model, rollout)
    update(model)
    after = parameters(model)
    assert active["first"] == 0, "the first step starts at the old policy"
    assert active["last"] > 0.1, "the trust region has to matter"
    actor = {key for key in after if key.startswith(("action_net", "mlp_extractor.policy_net", "scale_net"))}
    names = set(after) if model.policy.shares_parameters else actor
    if kind == "joint_kl":
        names -= {"scale_net.raw"}
    for name in names:
        change, expected_change = after[name] - before[name], expected[name] - before[name]
        size = expected_change.abs().max()
        assert size > 0, name
        th.testing.assert_close(change, expected_change, rtol=0, atol=2e-3 * size.item(), msg=name)


def test_the_critic_minimises_the_squared_error():
    model = sgd_model(n_critic_epochs=3)
    rollout = collect(model)
    policy = copy.deepcopy(model.policy)
    update(model)
    for _ in range(3):
        loss = (policy.predict_values(rollout.observations).flatten() - rollout.returns).square().mean()
        critic = policy.critic_parameters()
        with th.no_grad():
            for p, gradient in zip(critic, th.autograd.grad(loss, critic), strict=True):
                p -= 0.1 * gradient
    for p, expected in zip(model.policy.critic_parameters(), policy.critic_parameters(), strict=True):
        th.testing.assert_close(p, expected, rtol=1e-4, atol=1e-6)


CRITIC = ("value_net", "mlp_extractor.value_net", "vf_features_extractor")


def changed(model: TRPL, before: dict[str, th.Tensor]) -> set[str]:
    return {key for key, value in parameters(model).items() if not th.equal(value, before[key])}


@every_scale
def test_policy_epochs_leave_the_critic_alone(scale):
    model = make_model(n_critic_epochs=0, policy_kwargs=SCALES[scale])
    collect(model)
    before = parameters(model)
    update(model)
    names = changed(model, before)
    assert names
    assert not any(name.startswith(CRITIC) for name in names)


@every_scale
def test_critic_epochs_leave_the_policy_alone(scale):
    model = make_model(learning_rate=0.0, policy_kwargs=SCALES[scale])
    rollout = collect(model)
    before, old = parameters(model), gaussian(model, rollout.observations)
    update(model)
    names = changed(model, before) - {"scale_net.raw"}
    assert names
    assert all(name.startswith(CRITIC) for name in names)
    new = gaussian(model, rollout.observations)
    assert th.equal(new.mean, old.mean)
    assert th.equal(new.scale, old.scale)


def test_one_loss_where_parameters_are_shared():
    model = make_model(policy_kwargs=SHARED, n_critic_epochs=0)
    collect(model)
    before = parameters(model)
    log = update(model)
    assert changed(model, before) == set(before)
    assert "train/critic_learning_rate" not in log
    assert log["train/value_loss"] > 0


@pytest.mark.parametrize("max_grad_norm", [0.01, 0.3])
def test_the_gradient_norm_is_clipped(max_grad_norm):
    def length(**kwargs) -> float:
        model = sgd_model(n_epochs=1, max_grad_norm=max_grad_norm, policy_kwargs=SCALES["diag contextual"], **kwargs)
        collect(model)
        before = [p.detach().clone() for p in model.policy.actor_parameters()]
        update(model)
        steps = [p - q for p, q in zip(model.policy.actor_parameters(), before, strict=True)]
        return th.cat([step.flatten() for step in steps]).norm().item() / 0.3

    assert length() == pytest.approx(max_grad_norm, rel=1e-3)
    assert length(normalize_advantage=False) <= max_grad_norm * 1.001


# --- the standard deviation ---


@pytest.mark.parametrize("kind", ["kl", "w2", "frobenius"])
@pytest.mark.parametrize("scale", ["diag", "full"])
def test_a_non_contextual_scale_becomes_its_projection_exactly(monkeypatch, kind, scale):
    model = make_model(projection=kind, policy_kwargs=SCALES[scale], **FAST)
    rollout = collect(model)
    acting, old = model.policy.gaussian(rollout.observations).detach(), gaussian(model, rollout.observations)
    predictions = []
    set_scale = model.policy.set_scale

    def remember(value: th.Tensor) -> None:
        predictions.append(model.policy.gaussian(rollout.observations).detach())
        set_scale(value)

    monkeypatch.setattr(model.policy, "set_scale", remember)
    update(model)
    (prediction,) = predictions
    bounds = (th.tensor(bound, dtype=th.float64) for bound in (0.03, 1e-3))
    projected = model.trust_region_layer(prediction, acting, *bounds)
    assert not th.equal(projected.scale, prediction.scale)
    assert th.equal(model.policy.gaussian(rollout.observations).scale, projected.scale)
    assert PROJECTIONS[kind]().distance(gaussian(model, rollout.observations), old)[1] <= 1e-3


@pytest.mark.parametrize("scale", ["diag", "full"])
def test_the_joint_projection_adopts_the_mean_covariance(monkeypatch, scale):
    model = make_model(projection="joint_kl", policy_kwargs=SCALES[scale], **FAST)
    rollout = collect(model)
    acting, old = model.policy.gaussian(rollout.observations).detach(), gaussian(model, rollout.observations)
    predictions = []
    set_scale = model.policy.set_scale

    def remember(value: th.Tensor) -> None:
        predictions.append(model.policy.gaussian(rollout.observations).detach())
        set_scale(value)

    monkeypatch.setattr(model.policy, "set_scale", remember)
    update(model)
    covariance = JointKLProjection()(predictions[0], acting).covariance.double().mean(0)
    assert JointKLProjection().is_inside(gaussian(model, rollout.observations), old).any()
    th.testing.assert_close(gaussian(model, rollout.observations).covariance, covariance, rtol=1e-5, atol=1e-7)


# --- the log ---


@every_projection
@every_scale
def test_full_updates_stay_finite_and_the_log_means_what_it_says(kind, scale):
    model = make_model(projection=kind, policy_kwargs=SCALES[scale], **FAST)
    projection = PROJECTIONS[kind]()
    for i in range(2):
        rollout = collect(model)
        old = gaussian(model, rollout.observations)
        log = update(model, seed=i)
        new = gaussian(model, rollout.observations)
        assert all(p.isfinite().all() for p in model.policy.parameters())
        assert all(np.isfinite(v) for v in log.values() if isinstance(v, float))
        mean, cov = distances(projection, new, old)
        p, q = (MultivariateNormal(g.mean, scale_tril=g.scale_tril.expand(64, 3, 3)) for g in (new, old))
        kl = kl_divergence(p, q)
        expected = {
            "kl_mean": kl.mean(),
            "kl_max": kl.max(),
            "mean_distance_mean": mean.mean(),
            "mean_distance_max": mean.max(),
            "cov_distance_mean": cov.mean(),
            "cov_distance_max": cov.max(),
            "entropy": p.entropy().mean(),
        }
        for key, value in expected.items():
            assert log[f"trust_region/{key}"] == pytest.approx(value.item(), rel=1e-6, abs=1e-9), key
        outside = (mean + cov > 0.031) if kind == "joint_kl" else (mean > 0.03) | (cov > 1e-3)
        assert log["trust_region/violation_fraction"] == pytest.approx(outside.double().mean().item())
        assert 0 <= log["trust_region/projected_fraction"] <= 1
        assert log["trust_region/kl_mean"] <= log["trust_region/kl_max"]
        assert (log["trust_region/mean_bound"], log["trust_region/cov_bound"]) == (0.03, 1e-3)
        assert log.get("trust_region/kl_bound") == (pytest.approx(0.031) if "kl" in kind else None)
        std = new.covariance.diagonal(dim1=-2, dim2=-1).sqrt().mean().item()
        assert log["train/std"] == pytest.approx(std, rel=1e-5)
        if not new.is_contextual and kind != "joint_kl":
            assert log["trust_region/cov_distance_max"] <= 1e-3
        if "full" in scale:
            assert log["train/projection_fallbacks"] == 0
        assert log["train/trust_region_loss"] > 0


def test_nothing_is_projected_where_nothing_moves():
    model = make_model(learning_rate=0.0)
    collect(model)
    log = update(model)
    for key in ("kl_max", "mean_distance_max", "cov_distance_max", "violation_fraction", "projected_fraction"):
        assert log[f"trust_region/{key}"] == 0.0
    assert log["train/trust_region_loss"] == 0.0
    assert abs(log["train/policy_gradient_loss"]) < 1e-5


# --- learning rates and bounds over time ---


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


# --- entropy control ---


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


# --- regression and the penalty ---


@pytest.mark.parametrize("kwargs", [{}, {"policy_kwargs": SHARED}], ids=["separate", "shared"])
@pytest.mark.parametrize("scale", ["diag", "full contextual"])
@pytest.mark.parametrize("kind", KINDS)
def test_regression_brings_the_policy_to_its_projection(kind, scale, kwargs):
    policy_kwargs = SCALES[scale] | kwargs.get("policy_kwargs", {})

    def violation(n_regression_epochs: int) -> dict[str, float]:
        model = make_model(
            projection=kind,
            n_regression_epochs=n_regression_epochs,
            trust_region_coef=0.0,
            policy_kwargs=policy_kwargs,
            learning_rate=2e-3,
            n_epochs=8,
        )
        collect(model)
        return update(model)

    without, with_regression = violation(0), violation(10)
    assert without["trust_region/mean_distance_max"] > 0.03
    assert with_regression["trust_region/mean_distance_max"] < 0.8 * without["trust_region/mean_distance_max"]
    assert with_regression["trust_region/violation_fraction"] < without["trust_region/violation_fraction"]
    assert with_regression["train/regression_loss"] > 0
    assert "train/regression_loss" not in without


def test_regression_leaves_a_non_contextual_scale_alone():
    def scale(n_regression_epochs: int) -> th.Tensor:
        model = make_model(n_regression_epochs=n_regression_epochs, **FAST)
        collect(model)
        update(model)
        return model.policy.gaussian(th.zeros(1, 3)).scale

    assert th.equal(scale(0), scale(5))


def test_the_penalty_holds_the_policy_near_its_projection():
    def distance(coefficient: float) -> float:
        model = make_model(trust_region_coef=coefficient, n_epochs=10, learning_rate=3e-3)
        collect(model)
        return update(model)["trust_region/mean_distance_mean"]

    assert distance(0.0) > 1.5 * distance(8.0)
    assert distance(8.0) > distance(200.0)


# --- the hard trust region ---


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


# --- other projections ---


@pytest.mark.parametrize("scale", ["diag", "full contextual"])
def test_no_projection_is_the_plain_policy_gradient(scale):
    model = sgd_model(projection=None, policy_kwargs=SCALES[scale], learning_rate=0.01)
    rollout = collect(model)
    policy = copy.deepcopy(model.policy)
    actors = policy.actor_parameters()
    advantages = (rollout.advantages - rollout.advantages.mean()) / rollout.advantages.std()
    for _ in range(model.n_epochs):
        _, log_prob, _ = policy.evaluate_actions(rollout.observations, rollout.actions)
        loss = -(th.exp(log_prob - rollout.old_log_prob) * advantages).mean()
        with th.no_grad():
            for p, gradient in zip(actors, th.autograd.grad(loss, actors), strict=True):
                p -= 0.01 * gradient
    log = update(model)
    for p, expected in zip(model.policy.actor_parameters(), actors, strict=True):
        th.testing.assert_close(p, expected, rtol=1e-4, atol=1e-6)
    assert log["train/trust_region_loss"] == 0
    assert log["trust_region/kl_mean"] > 0


@pytest.mark.parametrize("kwargs", [{}, {"entropy_schedule": "linear"}])
def test_no_projection_trains(kwargs):
    logs = train_and_record(make_model(projection=None, **kwargs, **FAST), 2)
    assert all(log["trust_region/violation_fraction"] == 0 for log in logs)


class MeanOnly(KLProjection):
    """The covariance stays that of the old policy."""

    def project_std(self, new: Gaussian, old: Gaussian, bound) -> th.Tensor:
        return old.std.expand_as(new.std)


class Rectangle(Projection):
    """A trust region with corners: the largest step of any dimension, relative to the old σ."""

    def mean_distance(self, p: Gaussian, q: Gaussian) -> th.Tensor:
        return ((p.mean - q.mean) / q.std).abs().amax(-1)

    def cov_distance(self, p: Gaussian, q: Gaussian) -> th.Tensor:
        return (p.std / q.std - 1).abs().amax(-1)

    def project_mean(self, new: Gaussian, old: Gaussian, bound) -> th.Tensor:
        limit = 0.999 * th.as_tensor(bound, dtype=new.mean.dtype).unsqueeze(-1) * old.std
        return old.mean + (new.mean - old.mean).clamp(-limit, limit)

    def project_std(self, new: Gaussian, old: Gaussian, bound) -> th.Tensor:
        limit = 0.999 * th.as_tensor(bound, dtype=new.mean.dtype).unsqueeze(-1) * old.std
        return old.std + (new.std - old.std).clamp(-limit, limit)


def test_a_projection_of_ones_own_that_fixes_the_scale():
    model = make_model(projection=MeanOnly(0.05), policy_kwargs={"init_std": 0.7}, **FAST)
    logs = train_and_record(model, 3)
    assert th.equal(model.policy.gaussian(th.zeros(1, 3)).scale, th.full((3,), 0.7))
    assert all(log["trust_region/cov_distance_max"] == 0 < log["trust_region/mean_distance_max"] for log in logs)


@pytest.mark.parametrize("contextual", [False, True])
def test_a_projection_of_ones_own(contextual):
    settings = {"hard": True, "policy_kwargs": {"contextual_std": contextual}}
    model = make_model(projection=Rectangle(0.1, 0.02), **settings, **FAST)
    for log in train_and_record(model, 3):
        assert log["trust_region/violation_fraction"] == 0
        assert 0 < log["trust_region/mean_distance_max"] <= 0.1
        assert 0 < log["trust_region/cov_distance_max"] <= 0.02


def test_a_projection_of_ones_own_for_diagonals_only():
    class DiagonalOnly(Projection):
        cov_distance = KLProjection.cov_distance
        project_std = KLProjection.project_std

    model = make_model(projection=DiagonalOnly(), policy_kwargs={"covariance": "full"}, **FAST)
    with pytest.raises(NotImplementedError, match="DiagonalOnly does not project full covariances"):
        model.learn(64)


def test_the_layer_belongs_to_the_model():
    model = make_model(projection="w2", entropy_schedule="exp", entropy_equality=True, entropy_first=True)
    layer = model.trust_region_layer
    assert isinstance(layer, TrustRegionLayer)
    assert isinstance(layer.projection, WassersteinProjection)
    assert (layer.entropy_equality, layer.entropy_first) == (True, True)
    assert make_model(projection=None).trust_region_layer.projection is None


# --- no dead options ---


class OtherBuffer(RolloutBuffer):
    def __init__(self, *args, factor: float = 0.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.factor = factor

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.returns *= self.factor


ENTROPY = {"entropy_schedule": "exp", "target_entropy": 2.0, "temperature": 0.8}

#: Argument: its value, and what has to be set besides for it to matter.
OPTIONS = {
    "learning_rate": (1e-4, {}),
    "critic_learning_rate": (1e-2, {}),
    "n_steps": (32, {}),
    "batch_size": (16, {}),
    "n_epochs": (3, {}),
    "n_critic_epochs": (3, {}),
    "gamma": (0.5, {}),
    "gae_lambda": (0.5, {}),
    "projection": ("w2", {}),
    "mean_bound": (0.01, {}),
    "cov_bound": (1e-4, {}),
    "trust_region_coef": (1.0, {}),
    "entropy_schedule": ("linear", ENTROPY),
    "target_entropy": (1.8, ENTROPY),
    "temperature": (0.1, ENTROPY),
    "entropy_equality": (True, ENTROPY | {"target_entropy": -1.0}),
    "entropy_first": (True, ENTROPY),
    "n_regression_epochs": (1, {}),
    "hard": (True, {}),
    "max_hard_steps": (1, {"hard": True, "learning_rate": 3e-2}),
    "normalize_advantage": (False, {}),
    "ent_coef": (0.1, {}),
    "vf_coef": (0.1, {"policy_kwargs": SHARED}),
    "max_grad_norm": (0.01, {}),
    "rollout_buffer_class": (OtherBuffer, {}),
    "rollout_buffer_kwargs": ({"factor": 0.5}, {"rollout_buffer_class": OtherBuffer}),
    "policy_kwargs": ({"init_std": 0.5}, {}),
    "seed": (1, {}),
}
POLICY_OPTIONS = {
    "covariance": "full",
    "contextual_std": True,
    "init_std": 0.5,
    "min_std": 0.99,
    "net_arch": [8],
    "activation_fn": th.nn.ReLU,
    "ortho_init": False,
    "share_features_extractor": True,
    "features_extractor_class": SHARED["features_extractor_class"],
    "optimizer_class": th.optim.SGD,
    "optimizer_kwargs": {"eps": 1e-1},
}
#: Tested elsewhere: what they change is not the training. (``compile`` makes it faster.)
WITHOUT_EFFECT = {"policy", "env", "stats_window_size", "tensorboard_log", "verbose", "device", "compile"}


def test_the_tables_hold_every_argument():
    arguments = set(inspect.signature(TRPL.__init__).parameters) - {"self", "_init_setup_model"}
    assert arguments == set(OPTIONS) | WITHOUT_EFFECT
    policy_arguments = set(inspect.signature(TRPL.policy_aliases["MlpPolicy"].__init__).parameters)
    policy_arguments -= {"self", "observation_space", "action_space", "lr_schedule", "use_sde"}
    # These two matter with other arguments or observations than here (see sb3/test_spaces.py).
    policy_arguments -= {"features_extractor_kwargs", "normalize_images"}
    assert policy_arguments == set(POLICY_OPTIONS)


def outcome(**kwargs) -> dict[str, th.Tensor]:
    model = make_model(**({"learning_rate": 1e-2} | kwargs))
    model.learn(192)
    return parameters(model)


@pytest.fixture(scope="module")
def default_outcome():
    """What becomes of a model without further arguments, which most of them are compared with."""
    th.manual_seed(0)
    return outcome()


@pytest.mark.parametrize("argument", OPTIONS)
def test_every_argument_changes_the_training(argument, default_outcome):
    value, besides = OPTIONS[argument]
    without = outcome(**besides) if besides else default_outcome
    assert not all_equal(without, outcome(**(besides | {argument: value})))


@pytest.mark.parametrize("argument", POLICY_OPTIONS)
def test_every_policy_argument_changes_the_training(argument, default_outcome):
    besides = {"features_extractor_class": SHARED["features_extractor_class"]} if argument.startswith("share") else {}
    without = outcome(policy_kwargs=besides) if besides else default_outcome
    assert not all_equal(without, outcome(policy_kwargs=besides | {argument: POLICY_OPTIONS[argument]}))


def test_the_stats_window():
    model = make_model(stats_window_size=3)
    model.learn(64)
    assert len(model.ep_info_buffer) == 3
