"""The Frobenius projection is the solution of eqs 5 and 7."""

import numpy as np
import pytest
import torch as th

from sb3_trl.projections import FrobeniusProjection, Gaussian

from . import oracles
from .cases import pair


@pytest.mark.parametrize("bound", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_covariance_solves_eq_7(kind, bound):
    new, old = pair(3, dim=3, kind=kind, size=1.0)
    projected = FrobeniusProjection(1.0, bound)(new, old)
    for i in range(3):
        expected = oracles.frobenius_covariance(new.covariance[i].numpy(), old.covariance[i].numpy(), bound)
        np.testing.assert_allclose(projected.covariance[i].numpy(), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_mean_solves_eq_5(kind):
    new, old = pair(3, dim=4, kind=kind, size=1.0)
    projected = FrobeniusProjection(0.03, 1.0)(new, old)
    for i in range(3):
        expected = oracles.mahalanobis_mean(new.mean[i].numpy(), old.mean[i].numpy(), old.scale_tril[i].numpy(), 0.03)
        np.testing.assert_allclose(projected.mean[i].numpy(), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_covariances_are_interpolated_up_to_the_bound(kind):
    new, old = pair(50, dim=4, kind=kind, size=1.0)
    projection = FrobeniusProjection(1.0, 1e-3)
    projected = projection(new, old)
    step, whole = (g.covariance - old.covariance for g in (projected, new))
    t = (step * whole).sum((-2, -1)) / whole.square().sum((-2, -1))
    assert th.allclose(step, t[:, None, None] * whole, rtol=1e-7, atol=1e-9)
    assert th.allclose(step.square().sum((-2, -1)), th.full((50,), 1e-3, dtype=th.float64), rtol=1e-8)


def test_a_variance_lost_in_rounding_has_a_finite_gradient():
    """Inside a wide bound, σ² − σ_o² rounds to −σ_o² in float32."""
    std = th.full((2, 3), 1e-6, requires_grad=True)
    old = Gaussian(th.zeros(2, 3), std=th.ones(2, 3))
    projected = FrobeniusProjection(1.0, 100.0)(Gaussian(old.mean, std=std), old)
    assert th.equal(projected.std, std)
    projected.std.sum().backward()
    assert th.equal(std.grad, th.ones(2, 3))
