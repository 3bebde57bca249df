"""The promise of the package: over a million random cases per projection, no state leaves its trust region."""

import pytest
import torch as th

from sb3_trl.projections import Gaussian

from .cases import SEPARATE, distances, leaf

#: Dimension and number of states; with two kinds of numbers, a million in all.
SIZES = ((1, 125_000), (2, 125_000), (3, 100_000), (6, 75_000), (17, 50_000), (33, 15_000), (64, 10_000))
CHUNK = 25_000


def draw(n: int, dim: int, contextual: bool, dtype: th.dtype) -> tuple[Gaussian, Gaussian]:
    """Variance ratios 1e-4 to 1e4, |mean|/std up to 1e3; every eighth state identical, every other one near."""
    own = (n,) if contextual else ()
    std_old = 10 ** (4 * th.rand(*own, dim, dtype=th.float64) - 2)
    nearness = 10 ** (-4 * th.rand(n, 1, dtype=th.float64))
    nearness[::2] = 1.0
    nearness[::8] = 0.0
    own_nearness = nearness if contextual else 1.0
    std = std_old * 10 ** ((4 * th.rand(*own, dim, dtype=th.float64) - 2) * own_nearness)
    mean_old = std_old * 10 ** (6 * th.rand(n, 1, dtype=th.float64) - 3) * th.randn(n, dim, dtype=th.float64)
    mean = mean_old + 3 * nearness * std_old * th.randn(n, dim, dtype=th.float64)
    return Gaussian(mean.to(dtype), std.to(dtype)), Gaussian(mean_old.to(dtype), std_old.to(dtype))


def bound(n: int, per_state: bool, smallest: float) -> th.Tensor | float:
    """Log-uniform from ``smallest`` to 1."""
    exponent = th.rand(n if per_state else 1, dtype=th.float64)
    bounds = smallest**exponent
    return bounds if per_state else bounds.item()


@pytest.mark.parametrize(("dtype", "smallest", "tolerance"), [(th.float64, 1e-6, 1e-12), (th.float32, 1e-4, 1e-6)])
@pytest.mark.parametrize("name", SEPARATE)
def test_bound_holds(name, dtype, smallest, tolerance):
    projection = SEPARATE[name]()
    for dim, total in SIZES:
        for index, start in enumerate(range(0, total, CHUNK)):
            n = min(CHUNK, total - start)
            contextual, per_state = (True, False)[index % 2], (True, True, False)[index % 3]
            new, old = draw(n, dim, contextual, dtype)
            new = leaf(new)
            mean_bound, cov_bound = bound(n, per_state, smallest), bound(n, per_state, smallest)
            projected = projection(new, old, mean_bound, cov_bound)
            for got, limit in zip(distances(projection, projected, old), (mean_bound, cov_bound), strict=True):
                assert (got <= limit * (1 + tolerance)).all()
            _check_inside_unchanged(projection, new, old, projected, mean_bound, cov_bound)
            _check_finite(new, projected)


def _check_inside_unchanged(projection, new, old, projected, mean_bound, cov_bound):
    margin = 1 - 1e-5 if new.mean.dtype == th.float32 else 1 - 1e-12
    mean, cov = distances(projection, new, old)
    inside = mean <= margin * mean_bound
    assert inside.any()
    assert th.equal(projected.mean[inside], new.mean[inside])
    inside = (cov <= margin * cov_bound).expand(projected.scale.shape[:-1])
    assert th.equal(projected.std[inside], new.std.expand_as(projected.std)[inside])


def _check_finite(new, projected):
    assert projected.mean.isfinite().all()
    assert projected.std.isfinite().all()
    assert (projected.std > 0).all()
    th.autograd.backward(
        [projected.mean, projected.std],
        [th.randn_like(projected.mean).sign(), th.randn_like(projected.std).sign()],
    )
    assert new.mean.grad.isfinite().all()
    assert new.std.grad.isfinite().all()
