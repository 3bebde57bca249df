"""TRPL's update: the loss, the standard deviation, the log, regression and the penalty."""

import copy

import numpy as np
import pytest
import torch as th
from support import KINDS, SHARED, collect, distances, gaussian, make_model, parameters, update
from torch.distributions import MultivariateNormal, kl_divergence

from sb3_trl import TRPL
from sb3_trl.projections import Gaussian, JointKLProjection
from sb3_trl.rollouts.rollout import Rollout

from .trpl_cases import FAST, PROJECTIONS, SCALES, every_projection, every_scale, sgd_model

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
