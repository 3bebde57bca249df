"""The joint KL projection is the solution of eq. 17, with and without an entropy constraint."""

import math

import numpy as np
import pytest
import torch as th

from sb3_trl.projections import Gaussian, JointKLProjection, KLProjection, TrustRegionLayer
from sb3_trl.projections.gaussian import kl

from . import oracles
from .cases import KINDS, backward, gaussian, leaf, moved, pair

BOUND = 0.05
projection = JointKLProjection(0.04, 0.01)

every_kind = pytest.mark.parametrize("kind", KINDS)


def arrays(new: Gaussian, old: Gaussian, i: int) -> tuple[np.ndarray, ...]:
    return tuple(x[i].numpy() for x in (new.mean, new.covariance, old.mean, old.covariance))


def assert_solution(projected: Gaussian, i: int, expected: tuple[np.ndarray, np.ndarray], tolerance: float) -> None:
    mean, cov = expected
    np.testing.assert_allclose(projected.mean[i].numpy(), mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(projected.covariance[i].numpy(), cov, rtol=tolerance, atol=tolerance)


@every_kind
@pytest.mark.parametrize("gain", [None, -1.0, -0.05, 0.02])
def test_solves_eq_17(kind, gain):
    """Without entropy bound, with one that does not bind, and with two that do."""
    new, old = pair(3, dim=3, kind=kind, size=1.0)
    new = new.with_scale(0.6 * new.scale)
    entropy = None if gain is None else old.entropy() + gain
    projected = projection(new, old, entropy_bound=entropy)
    for i in range(3):
        bound = None if entropy is None else entropy[i].item()
        assert_solution(projected, i, oracles.joint_kl(*arrays(new, old, i), BOUND, bound), 2e-5)


@every_kind
@pytest.mark.parametrize("gain", [-0.1, 0.0, 0.1])
def test_solves_eq_17_with_an_entropy_equality(kind, gain):
    new, old = pair(3, dim=2, kind=kind, size=0.6)
    entropy = old.entropy() + gain
    projected = projection(new, old, entropy_bound=entropy, entropy_equality=True)
    for i in range(3):
        expected = oracles.joint_kl_equality(*arrays(new, old, i), BOUND, entropy[i].item())
        assert_solution(projected, i, expected, 2e-5)


@every_kind
@pytest.mark.parametrize("equality", [False, True])
@pytest.mark.parametrize("dim", [1, 6, 17])
def test_constraints_hold(kind, equality, dim):
    old = gaussian(60, dim=dim, kind=kind)
    new = moved(old, 10 ** (3 * th.rand(60, dtype=th.float64) - 2))
    # Entropies that a ball of this size can reach, on both sides of the old one.
    gain = 0.15 * math.sqrt(dim) * (2 * th.rand(60, dtype=th.float64) - 1)
    entropy = old.entropy() + gain
    assert not projection.is_infeasible(old, entropy, equality).any()
    projected = projection(new, old, entropy_bound=entropy, entropy_equality=equality)
    assert (sum(kl(projected, old)) <= BOUND * (1 + 1e-10)).all()
    if equality:
        assert th.allclose(projected.entropy(), entropy, rtol=0, atol=1e-9)
    else:
        assert (projected.entropy() >= entropy - 1e-9).all()
    again = projection(projected, old, entropy_bound=entropy, entropy_equality=equality)
    assert th.allclose(again.mean, projected.mean, rtol=1e-7, atol=1e-8)
    assert th.allclose(again.scale, projected.scale, rtol=1e-7, atol=1e-8)


@every_kind
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_random_cases_stay_in_the_ball(kind, dtype):
    """Bounds from 1e-6 to 1, standard deviations up to 1e4 times the old ones, with and without entropy bounds."""
    n, dim = (100_000, 3) if kind == "diagonal" else (5_000, 3)
    old = gaussian(n, dim=dim, kind=kind, dtype=dtype, offset=10.0)
    new = leaf(moved(old, 10 ** (3.4 * th.rand(n, dtype=dtype) - 3)))
    bound = 10 ** -(6 * th.rand(n, dtype=th.float64))
    entropy = old.entropy().double() + 0.5 * bound.sqrt() * (2 * th.rand(n, dtype=th.float64) - 1)
    tolerance = 1e-9 if dtype == th.float64 else 1e-5
    for extra in ({}, {"entropy_bound": entropy}, {"entropy_bound": entropy, "entropy_equality": True}):
        projected = projection(new, old, bound / 2, bound / 2, **extra)
        assert (sum(kl(projected.double(), old.double())) <= bound * (1 + tolerance)).all()
        backward(projected)
        assert new.mean.grad.isfinite().all()
        assert new.scale.grad.isfinite().all()


@every_kind
@pytest.mark.parametrize("equality", [False, True])
def test_gradient_with_an_entropy_bound_equals_finite_differences(kind, equality):
    """States where the ball binds, the entropy, both, none, and an infeasible one."""
    new, old = pair(5, dim=2, kind=kind, size=th.tensor([0.02, 0.4, 0.8, 0.05, 0.3], dtype=th.float64))
    entropy = old.entropy() + th.tensor([-1.0, -2.0, 0.05, 0.03, 5.0], dtype=th.float64)
    if equality:
        entropy = old.entropy() + th.tensor([0.0, 0.1, 0.05, -0.1, 5.0], dtype=th.float64)
    assert projection.is_infeasible(old, entropy, equality).tolist() == [False] * 4 + [True]
    new = leaf(new)

    def project(mean: th.Tensor, scale: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        predicted = new.with_scale(scale if kind == "diagonal" else scale.tril(), mean)
        projected = projection(predicted, old, entropy_bound=entropy, entropy_equality=equality)
        return projected.mean, projected.scale

    assert th.autograd.gradcheck(project, (new.mean, new.scale), eps=1e-6, atol=1e-6, rtol=1e-5)


@every_kind
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_infeasible_entropy_honours_the_trust_region(kind, sign):
    """The old policy with its covariance scaled towards β, as far as the ball goes."""
    new, old = pair(4, dim=3, kind=kind, size=0.5)
    entropy = old.entropy() + 3 * sign
    assert projection.is_infeasible(old, entropy, equality=True).all()
    assert projection.is_infeasible(old, entropy).all() == (sign > 0)
    projected = projection(new, old, entropy_bound=entropy, entropy_equality=True)
    assert th.equal(projected.mean, old.mean)
    ratio = projected.covariance / old.covariance
    ratio = ratio.diagonal(dim1=-2, dim2=-1)
    assert th.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-9)
    assert ((ratio - 1) * sign > 0).all()
    assert th.allclose(sum(kl(projected, old)), th.full((4,), BOUND, dtype=th.float64), rtol=1e-9)
    if sign > 0:
        inequality = projection(new, old, entropy_bound=entropy)
        assert th.allclose(inequality.scale, projected.scale, rtol=1e-12)


def test_a_feasible_state_next_to_an_infeasible_one_is_solved():
    new, old = pair(2, dim=3, kind="diagonal", size=0.5)
    entropy = old.entropy() + th.tensor([0.02, 5.0], dtype=th.float64)
    both = projection(new, old, entropy_bound=entropy)
    alone = projection(new[:1], old[:1], entropy_bound=entropy[:1])
    assert th.allclose(both.mean[:1], alone.mean, rtol=1e-12)
    assert th.allclose(both.scale[:1], alone.scale, rtol=1e-12)


def test_entropy_bound_far_above_the_prediction_leaves_the_old_entropy_reachable():
    """β at the very edge of what the ball can reach."""
    dim = 4
    new, old = pair(1, dim=dim, kind="diagonal", size=1.0)
    log_kappa = 0.3
    bound = 0.5 * dim * (math.expm1(log_kappa) - log_kappa)
    for slack in (1e-2, 1e-6, 1e-10):
        entropy = old.entropy() + 0.5 * dim * log_kappa
        projected = projection(new, old, bound * (1 + slack) / 2, bound * (1 + slack) / 2, entropy_bound=entropy)
        assert (sum(kl(projected, old)) <= bound * (1 + slack) * (1 + 1e-10)).all()
        assert (projected.entropy() >= entropy - 1e-6).all()


@every_kind
def test_mean_alone_and_covariance_alone_agree_with_the_separate_projection(kind):
    """Where only one of the two moves, the two projections solve the same problem for the covariance."""
    new, old = pair(8, dim=3, kind=kind, size=1.0)
    new = new.with_scale(new.scale, old.mean)
    separate = KLProjection(1.0, BOUND)(new, old)
    joint = projection(new, old)
    assert th.allclose(joint.scale, separate.scale, rtol=1e-9)
    assert th.allclose(joint.mean, old.mean, rtol=1e-12)


@every_kind
def test_shared_scale_becomes_one_per_state(kind):
    new, old = pair(5, dim=3, kind=kind, contextual=False, size=0.5)
    projected = projection(new, old)
    assert projected.is_contextual
    assert projected.scale.shape[0] == 5
    inside = projection(old, old)
    assert th.equal(inside.scale, old.scale.expand_as(projected.scale))


def test_the_layer_passes_the_entropy_constraint_on():
    new, old = pair(5, dim=3, kind="diagonal", size=0.5)
    entropy = old.entropy() + 0.05
    for equality in (False, True):
        layer = TrustRegionLayer(projection, entropy_equality=equality)
        expected = projection(new, old, entropy_bound=entropy, entropy_equality=equality)
        got = layer(new, old, entropy_bound=entropy)
        assert th.equal(got.scale, expected.scale)
        assert th.equal(got.mean, expected.mean)


def test_distance_is_split_and_bounded_as_a_sum():
    new, old = pair(20, dim=3, kind="diagonal", size=0.5)
    mean, cov = projection.distance(new, old)
    assert th.equal(projection.is_inside(new, old), mean + cov <= BOUND)
    assert th.equal(projection.is_inside(new, old, 1.0, 2.0), mean + cov <= 3.0)
