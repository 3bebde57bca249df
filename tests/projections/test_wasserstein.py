"""The Wasserstein projection is the solution of eqs 5 and 8."""

import numpy as np
import pytest
import torch as th

from sb3_trl.projections import WassersteinProjection

from . import oracles
from .cases import matrix_sqrt, pair


@pytest.mark.parametrize("bound", [1e-3, 0.1])
def test_full_covariance_solves_eq_8_without_the_commuting_assumption(bound):
    new, old = pair(3, dim=3, kind="full", size=1.0)
    projected = WassersteinProjection(1.0, bound)(new, old)
    for i in range(3):
        expected = oracles.wasserstein_covariance(new.covariance[i].numpy(), old.scale[i].numpy(), bound)
        np.testing.assert_allclose(projected.covariance[i].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_square_roots_are_interpolated_in_the_metric_of_the_old_covariance():
    new, old = pair(20, dim=4, kind="full", size=1.0)
    projected = WassersteinProjection(1.0, 0.01)(new, old)
    inverse = old.scale.inverse()
    step, whole = (matrix_sqrt(inverse @ g.covariance @ inverse.mT) - th.eye(4) for g in (projected, new))
    t = 0.1 / whole.square().sum((-2, -1)).sqrt()
    assert th.allclose(step, t[:, None, None] * whole, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("bound", [1e-3, 0.1])
def test_std_solves_eq_9(bound):
    new, old = pair(3, dim=4, kind="diagonal", size=1.0)
    projected = WassersteinProjection(1.0, bound)(new, old)
    eta = (((new.std / old.std - 1) ** 2).sum(-1, keepdim=True) / bound).sqrt() - 1
    assert th.allclose(projected.std, (new.std + eta * old.std) / (1 + eta), rtol=1e-12)
    for i in range(3):
        expected = oracles.wasserstein_std(new.std[i].numpy(), old.std[i].numpy(), bound)
        np.testing.assert_allclose(projected.std[i].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_mean_solves_eq_5(kind):
    new, old = pair(3, dim=4, kind=kind, size=1.0)
    projected = WassersteinProjection(0.03, 1.0)(new, old)
    for i in range(3):
        expected = oracles.mahalanobis_mean(new.mean[i].numpy(), old.mean[i].numpy(), old.scale_tril[i].numpy(), 0.03)
        np.testing.assert_allclose(projected.mean[i].numpy(), expected, rtol=1e-8, atol=1e-10)


def test_commuting_form_interpolates_the_square_roots():
    """Eq. 9 as it stands."""
    new, old = pair(6, dim=3, kind="full", size=1.0)
    bound = 0.01
    projected = WassersteinProjection(1.0, bound, commuting=True)(new, old)
    root, root_old = matrix_sqrt(new.covariance), matrix_sqrt(old.covariance)
    step = th.linalg.solve_triangular(old.scale, root - root_old, upper=False)
    eta = (step.square().sum((-2, -1)) / bound).sqrt() - 1
    expected = (root + eta[:, None, None] * root_old) / (1 + eta)[:, None, None]
    assert th.allclose(matrix_sqrt(projected.covariance), expected, rtol=1e-9)


def test_exact_and_commuting_form_differ_unless_the_matrices_commute():
    new, old = pair(6, dim=3, kind="full", size=1.0)
    exact, commuting = (WassersteinProjection(1.0, 0.1, commuting=c) for c in (False, True))
    assert not th.allclose(exact(new, old).scale, commuting(new, old).scale, rtol=1e-3)
    multiple = old.with_scale(1.7 * old.scale)
    assert th.allclose(exact(multiple, old).scale, commuting(multiple, old).scale, rtol=1e-9)


def test_bound_is_met_exactly_where_it_is_active():
    for kind in ("diagonal", "full"):
        projection = WassersteinProjection(0.03, 1e-3)
        new, old = pair(50, dim=6, kind=kind, size=1.0)
        mean, cov = projection.distance(projection(new, old), old)
        assert th.allclose(mean, th.full_like(mean, 0.03), rtol=1e-9)
        assert th.allclose(cov, th.full_like(cov, 1e-3), rtol=1e-9)


def test_covariances_just_inside_come_back_bit_for_bit():
    """Too far out for the test without eigenvalues, and inside all the same."""
    projection = WassersteinProjection(1.0, 0.05)
    new, old = pair(400, dim=3, kind="full", size=0.1)
    distance = projection.distance(new, old)[1]
    inside = distance <= 0.05 * (1 - 1e-12)
    assert (inside & (distance > 0.03)).any()
    assert (~inside).any()
    projected = projection(new, old)
    assert th.equal(projected.scale[inside], new.scale[inside])
    assert (projected.scale[~inside] != new.scale[~inside]).flatten(1).any(-1).all()
