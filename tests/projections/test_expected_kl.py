"""The projection onto a ball of expected KL: inside, as far out as the ball allows, and nothing else changed."""

import pytest
import torch as th

from sb3_trl.projections import Gaussian
from sb3_trl.projections.expected_kl import covariance_share, expected_kl, interpolate_covariance, mean_share

from .cases import KINDS, gaussian, moved

every_kind = pytest.mark.parametrize("kind", KINDS)
SIZES = [1e-3, 0.1, 1.0, 30.0]


def policies(kind: str, size: float, dim: int = 4, n: int = 50, dtype: th.dtype = th.float64):
    """An old policy, and a new one ``size`` standard deviations away."""
    old = gaussian(n, dim=dim, kind=kind, contextual=False, dtype=dtype)
    return moved(old, size), old


def oracle(p: Gaussian, q: Gaussian) -> th.Tensor:
    """E[KL(p ‖ q)] by torch's own formula."""

    def normal(g: Gaussian) -> th.distributions.MultivariateNormal:
        tril = g.scale_tril.double().expand(len(g.mean), g.dim, g.dim)
        return th.distributions.MultivariateNormal(g.mean.double(), scale_tril=tril)

    return th.distributions.kl_divergence(normal(p), normal(q)).mean()


def along(intermediate: Gaussian, new: Gaussian, t: float | th.Tensor) -> Gaussian:
    return new.with_scale(new.scale, intermediate.mean + t * (new.mean - intermediate.mean))


# --- the divergence ---


@every_kind
@pytest.mark.parametrize("size", SIZES[1:])
def test_expected_kl(kind, size):
    new, old = policies(kind, size)
    mean_part, cov_part = expected_kl(new, old)
    assert mean_part.shape == cov_part.shape == ()
    assert (mean_part + cov_part).item() == pytest.approx(oracle(new, old).item(), rel=1e-9)
    assert sum(expected_kl(old, old)) == 0


@every_kind
def test_a_covariance_that_depends_on_the_state_is_refused(kind):
    contextual = gaussian(5, dim=2, kind=kind)
    plain = gaussian(5, dim=2, kind=kind, contextual=False)
    for pair in ((contextual, plain), (plain, contextual)):
        with pytest.raises(ValueError, match="no covariance depends on the state"):
            expected_kl(*pair)


# --- the covariance ---


@every_kind
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bound", [1e-4, 0.015, 1.0])
def test_the_covariance_leaves_room_for_the_means(kind, size, bound):
    """Its part of ε is at most in proportion; with the means' step, too, taken in proportion, both obey ε."""
    new, old = policies(kind, size)
    mean_part, cov_part = expected_kl(new, old)
    share = covariance_share(mean_part, cov_part, bound)
    projected = new.with_scale(interpolate_covariance(new, old, share))
    used = expected_kl(projected, old)[1]
    assert used <= share * cov_part * (1 + 1e-9) + 1e-15
    assert share * (mean_part + cov_part) <= bound * (1 + 1e-12)
    assert bound - used >= share * mean_part * (1 - 1e-9) - 1e-12


@every_kind
def test_the_covariance_is_interpolated(kind):
    new, old = policies(kind, 0.5)
    for share in (0.0, 0.3, 1.0):
        scale = interpolate_covariance(new, old, th.tensor(share, dtype=th.float64))
        expected = (1 - share) * old.covariance + share * new.covariance
        th.testing.assert_close(new.with_scale(scale).covariance, expected)


@every_kind
def test_inside_the_covariance_comes_back_bit_for_bit(kind):
    new, old = policies(kind, 1e-2, dtype=th.float32)
    share = covariance_share(*expected_kl(new, old), bound=1.0)
    assert share == 1
    assert th.equal(interpolate_covariance(new, old, share).float(), new.scale)


# --- the means ---


@every_kind
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("away", [0.0, 0.05])
def test_the_means_go_to_the_boundary_and_not_beyond(kind, size, away):
    """Wherever inside the ball the intermediate policy is."""
    new, old = policies(kind, size)
    intermediate = old.with_scale(old.scale, old.mean + old.unwhiten(away * th.randn_like(old.mean)))
    bound = th.tensor(0.015, dtype=th.float64)
    t = mean_share(intermediate, new, old, bound)
    assert 0 <= t <= 1
    used = expected_kl(along(intermediate, new, t), old)[0]
    assert used <= bound * (1 + 1e-9)
    if t < 1:
        assert used == pytest.approx(bound.item(), rel=1e-9)
        grid = th.linspace(t.item(), 1, 20, dtype=th.float64)[1:]
        assert all(expected_kl(along(intermediate, new, x), old)[0] > bound for x in grid)


def test_against_bisection():
    for seed in range(50):
        th.manual_seed(seed)
        new, old = policies("diagonal", 10 ** th.empty(()).uniform_(-2, 2).item(), dim=3)
        intermediate = old.with_scale(old.scale, old.mean + 0.1 * old.unwhiten(th.randn_like(old.mean)))
        bound = 1.01 * expected_kl(intermediate, old)[0]
        lower, upper = 0.0, 1.0
        for _ in range(60):
            middle = (lower + upper) / 2
            inside = expected_kl(along(intermediate, new, middle), old)[0] <= bound
            lower, upper = (middle, upper) if inside else (lower, middle)
        assert mean_share(intermediate, new, old, bound).item() == pytest.approx(lower, rel=1e-7, abs=1e-12)


def test_back_through_the_ball():
    """An intermediate policy at the boundary may move across the ball, but not out of it."""
    old = Gaussian(th.zeros(1, 1, dtype=th.float64), std=th.ones(1, dtype=th.float64))
    at = {x: old.with_scale(old.scale, th.full((1, 1), x, dtype=th.float64)) for x in (-3.0, 1.0, 2.0)}
    bound = th.tensor(0.5, dtype=th.float64)  # ½·1²
    assert mean_share(at[1.0], at[-3.0], old, bound) == 0.5
    assert mean_share(at[1.0], at[2.0], old, bound) == 0
    with pytest.raises(ValueError, match=r"outside the trust region: 1.5 nats too far"):
        mean_share(at[2.0], at[1.0], old, bound)


def test_nothing_to_do():
    new, old = policies("diagonal", 1.0)
    bound = th.tensor(0.015, dtype=th.float64)
    assert mean_share(old, old, old, bound) == 1
    assert mean_share(old, old, old, 0 * bound) == 1
    assert mean_share(old, new, old, 0 * bound) == 0
    assert mean_share(old, new, old, 1e9 * bound) == 1


def test_float32_inputs_are_measured_in_float64():
    new, old = policies("diagonal", 1.0, dtype=th.float32)
    bound = th.tensor(1e-6, dtype=th.float64)
    t = mean_share(old, new, old, bound)
    assert t.dtype == th.float64
    exact = mean_share(old.double(), new.double(), old.double(), bound)
    assert t.item() == pytest.approx(exact.item(), rel=1e-12)
