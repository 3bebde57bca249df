"""TRPL without a projection, and with projections of one's own."""

import copy

import pytest
import torch as th
from support import collect, make_model, train_and_record, update

from sb3_trl.projections import Gaussian, KLProjection, Projection, TrustRegionLayer, WassersteinProjection

from .trpl_cases import FAST, SCALES, sgd_model


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
