"""The KL projection is the solution of eqs 5 and 10."""

import numpy as np
import pytest
import torch as th

from sb3_trl.projections import Gaussian, KLProjection

from . import oracles
from .cases import pair


@pytest.mark.parametrize("dim", [1, 2, 6, 17, 64])
@pytest.mark.parametrize("bound", [1e-6, 1e-3, 0.1, 1.0, 3.0])
def test_std_equals_an_independent_solver(dim, bound):
    """Variance ratios from 1e-8 to 1e8; the solver's own bisection is good to about 1e-10."""
    ratio = 10 ** (th.rand(20, dim, dtype=th.float64) * 8 - 4)
    ratio[::2] = 1 + 0.1 * th.randn(10, dim, dtype=th.float64).clamp(-3, 3)
    std_old = 10 ** (th.rand(20, dim, dtype=th.float64) * 2 - 1)
    mean = th.zeros(20, dim, dtype=th.float64)
    projected = KLProjection(1.0, bound)(Gaussian(mean, std=ratio * std_old), Gaussian(mean, std=std_old))
    for i in range(20):
        expected = oracles.kl_std((ratio * std_old)[i].numpy(), std_old[i].numpy(), bound)
        np.testing.assert_allclose(projected.std[i].numpy(), expected, rtol=1e-8)


@pytest.mark.parametrize("bound", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_covariance_solves_eq_10(kind, bound):
    new, old = pair(3, dim=3, kind=kind, size=1.0)
    projected = KLProjection(1.0, bound)(new, old)
    for i in range(3):
        expected = oracles.kl_covariance(new.covariance[i].numpy(), old.covariance[i].numpy(), bound)
        # On some processors the solver comes no closer than 2e-6.
        np.testing.assert_allclose(projected.covariance[i].numpy(), expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_mean_solves_eq_5(kind):
    new, old = pair(3, dim=4, kind=kind, size=1.0)
    projected = KLProjection(0.03, 1.0)(new, old)
    for i in range(3):
        # The bound counts ½ Mahalanobis².
        expected = oracles.mahalanobis_mean(
            new.mean[i].numpy(), old.mean[i].numpy(), old.scale_tril[i].numpy(), 2 * 0.03
        )
        np.testing.assert_allclose(projected.mean[i].numpy(), expected, rtol=1e-8, atol=1e-10)


def test_precisions_are_interpolated():
    """Eq. 11: Λ̃ lies on the segment between Λ_old and Λ, at one t for each state."""
    new, old = pair(20, dim=4, kind="full", size=1.0)
    projected = KLProjection(1.0, 0.01)(new, old)
    step, whole = (g.covariance.inverse() - old.covariance.inverse() for g in (projected, new))
    t = (step * whole).sum((-2, -1)) / whole.square().sum((-2, -1))
    assert ((t > 0) & (t < 1)).all()
    assert th.allclose(step, t[:, None, None] * whole, rtol=1e-8, atol=1e-10)


def test_bound_is_met_exactly_where_it_is_active():
    for kind in ("diagonal", "full"):
        projection = KLProjection(0.03, 1e-3)
        new, old = pair(50, dim=6, kind=kind, size=1.0)
        mean, cov = projection.distance(projection(new, old), old)
        assert th.allclose(mean, th.full_like(mean, 0.03), rtol=1e-9)
        assert th.allclose(cov, th.full_like(cov, 1e-3), rtol=1e-9)


def test_extreme_standard_deviations_stay_finite():
    """From the smallest to the largest standard deviations that float32 can square."""
    std = th.tensor([[1e-18, 1.0], [1e18, 1.0], [1.0, 1.0], [1e-18, 1e18]], requires_grad=True)
    mean = th.zeros(4, 2)
    projected = KLProjection(0.03, 1e-3)(Gaussian(mean, std=std), Gaussian(mean, std=th.ones(4, 2)))
    assert projected.std.isfinite().all()
    assert (projected.std > 0).all()
    projected.std.sum().backward()
    assert std.grad.isfinite().all()
