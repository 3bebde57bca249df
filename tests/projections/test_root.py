"""The root finder: few steps, never above the bound, whatever the ratios."""

import pytest
import torch as th

from sb3_trl.projections import root
from sb3_trl.projections.root import find_root, implicit_gradient, kl_along_path, kl_root, pole_limit

#: ε and how many evaluations of KL its root may take.
STEPS = ((1e-8, 2), (1e-6, 2), (1e-4, 2), (1e-3, 2), (1e-2, 3), (0.1, 4), (0.3, 5), (1.0, 6), (3.0, 9))


def ratios(n: int, dim: int) -> th.Tensor:
    """a = 1/r − 1 of variance ratios r from 1e-8 to 1e8: all large, all small, both, and most of them near 1."""
    exponent = 16 * th.rand(n, dim, dtype=th.float64) - 8
    quarter = n // 4
    exponent[:quarter] = exponent[:quarter].abs()
    exponent[quarter : 2 * quarter] = -exponent[quarter : 2 * quarter].abs()
    near = th.rand(quarter, dim) < 0.8
    exponent[2 * quarter : 3 * quarter][near] *= 1e-4
    return 10**-exponent - 1


@pytest.fixture
def evaluations(monkeypatch):
    """Counts how often KL(t) is evaluated."""
    count = [0]

    def counted(x):
        count[0] += 1
        return kl_along_path(x)

    monkeypatch.setattr(root, "kl_along_path", counted)
    return count


@pytest.mark.parametrize("dim", [1, 2, 6, 17, 64])
@pytest.mark.parametrize(("bound", "steps"), STEPS)
def test_kl_root_takes_few_steps_and_meets_the_bound(evaluations, dim, bound, steps):
    a = ratios(8000, dim)
    bound = th.tensor(bound, dtype=th.float64)
    t = kl_root(a, bound)
    assert evaluations[0] <= steps
    _check(t, a, bound, tolerance=1e-11)


@pytest.mark.parametrize(("bound", "steps"), STEPS)
def test_unrolled_root_meets_the_bound(monkeypatch, bound, steps):
    """With the number of steps that compiled code takes."""
    monkeypatch.setattr(root, "can_branch", lambda tensor: False)
    a = th.cat([ratios(8000, 3), th.zeros(1, 3, dtype=th.float64)])
    bound = th.tensor(bound, dtype=th.float64)
    _check(kl_root(a, bound), a, bound, tolerance=1e-9)


def _check(t: th.Tensor, a: th.Tensor, bound: th.Tensor, tolerance: float) -> None:
    inside = kl_along_path(a)[0] <= bound
    value, _ = kl_along_path(t.unsqueeze(-1) * a)
    assert ((t > 0) & (t <= 1)).all()
    assert (t[inside] == 1).all()
    assert (value <= bound * (1 + tolerance)).all()
    assert (inside | (value >= bound * (1 - tolerance))).all()


def test_bounds_per_state():
    a = ratios(1000, 4)
    bound = 10 ** (-6 * th.rand(1000, dtype=th.float64))
    _check(kl_root(a, bound), a, bound, tolerance=1e-11)


def test_identical_and_broken_rows_do_not_disturb_the_others():
    a = ratios(40, 3)
    bound = th.tensor(0.01, dtype=th.float64)
    expected = kl_root(a, bound)
    disturbed = a.clone()
    disturbed[3], disturbed[7], disturbed[9] = 0.0, th.nan, th.inf
    t = kl_root(disturbed, bound)
    assert t[3] == 1
    kept = [i for i in range(40) if i not in (3, 7, 9)]
    assert th.allclose(t[kept], expected[kept], rtol=1e-12)


def test_kl_along_path_is_the_divergence_and_its_slope():
    a = th.tensor([[0.5, -0.3, 4.0]], dtype=th.float64)
    t = th.tensor([0.7], dtype=th.float64, requires_grad=True)
    value, slope = kl_along_path(t.unsqueeze(-1) * a)
    ratio = 1 / (1 + t.unsqueeze(-1) * a)
    assert th.allclose(value, 0.5 * (ratio - 1 - ratio.log()).sum(-1))
    (gradient,) = th.autograd.grad(value, t)
    assert th.allclose(slope, t * gradient)


def test_find_root_solves_what_newton_alone_does_not():
    """A plateau, a kink and a wall: the bracket brings each of them in."""

    def function(t):
        value = th.where(t < 0.9, 1e-3 * t, 1e-3 * t + 1e6 * (t - 0.9).clamp(min=0) ** 2)
        slope = th.where(t < 0.9, 1e-3 * t, 1e-3 * t + 2e6 * t * (t - 0.9).clamp(min=0))
        return value, slope

    bound = th.tensor([1e-6, 5e-4, 1.0, 1e3], dtype=th.float64)
    start = th.tensor([1.0, 1e-9, 1e-3, 1e-9], dtype=th.float64)
    t = find_root(function, bound, start, th.ones_like(start))
    assert th.allclose(function(t)[0], bound, rtol=1e-9)


def test_find_root_returns_the_limit_of_a_function_that_stays_below():
    def function(t):
        return 0.1 * t**2, 0.2 * t**2

    start = th.tensor([1e-3, 0.5], dtype=th.float64)
    limit = th.tensor([1.0, 0.75], dtype=th.float64)
    assert th.equal(find_root(function, th.tensor(1.0, dtype=th.float64), start, limit), limit)


def test_find_root_stays_below_a_function_that_jumps():
    """There is no root: the largest t known to obey the bound."""

    def function(t):
        value = th.where(t < 0.5, 0.1 * t, 10 * t)
        return value, value

    start = th.tensor([0.9], dtype=th.float64)
    t = find_root(function, th.tensor(1.0, dtype=th.float64), start, th.ones_like(start))
    assert function(t)[0] <= 1
    assert t > 0.49


# --- the method of third order ---


def saturating(rate: th.Tensor):
    """f(t) = 1 − (1 + ct) exp(−ct), which is ½(ct)² at first and never 1; and its slope, and the slope's exponent."""

    def function(t):
        x = rate * t
        return 1 - (1 + x) * th.exp(-x), x.square() * th.exp(-x), 2 - x

    return function


def growing(rate: th.Tensor):
    """f(t) = 1 + (ct − 1) exp(ct), likewise."""

    def function(t):
        x = rate * t
        return 1 + (x - 1) * th.exp(x), x.square() * th.exp(x), 2 + x

    return function


def counting(function):
    """The function, and a list that grows with every evaluation."""
    calls = []
    return lambda t: calls.append(t.numel()) or function(t), calls


@pytest.mark.parametrize("shape", [saturating, growing])
def test_third_order_finds_the_root_wherever_it_starts(shape):
    rate = 10 ** (2 * th.rand(2000, dtype=th.float64) - 0.5)
    bound = 10 ** (-6 * th.rand(2000, dtype=th.float64) - 1e-4)
    start = 10 ** (-6 * th.rand(2000, dtype=th.float64))
    limit = th.full_like(start, 1e4)
    function, calls = counting(shape(rate))
    t = find_root(function, bound, start, limit)
    assert th.allclose(function(t)[0], bound, rtol=1e-10)
    assert len(calls) <= 20


def test_third_order_takes_fewer_steps_than_newton():
    rate = th.full((100,), 30.0, dtype=th.float64)
    bound = th.full_like(rate, 0.9)
    start = th.linspace(0.01, 0.3, 100, dtype=th.float64)
    limit = th.ones_like(rate)
    third, calls = counting(saturating(rate))
    newton, more_calls = counting(lambda t: saturating(rate)(t)[:2])
    assert th.allclose(find_root(third, bound, start, limit), find_root(newton, bound, start, limit), rtol=1e-7)
    assert len(calls) < len(more_calls)


def test_third_order_is_exact_where_the_slope_is_a_power():
    function, calls = counting(lambda t: (t**3, 3 * t**3, th.full_like(t, 3.0)))
    start = th.tensor([1e-3, 0.2, 1.0], dtype=th.float64)
    t = find_root(function, th.tensor(0.1, dtype=th.float64), start, th.ones_like(start))
    assert th.allclose(t, th.full_like(t, 0.1 ** (1 / 3)), rtol=1e-14)
    assert len(calls) == 2


def test_third_order_does_not_take_a_flat_place_for_a_root():
    """A step: below it, and above it, the slope is zero, and there is no model at all."""

    def function(t):
        x = (2000 * (t - 0.6)).clamp(-700, 700)
        p = th.sigmoid(x)
        slope = t * 2000 * p * (1 - p)
        return p, slope, 1 + t * 2000 * (1 - 2 * p)

    bound = th.tensor([1e-3, 0.5, 0.999], dtype=th.float64)
    for start in (1e-6, 0.3, 1.0):
        t = find_root(function, bound, th.full_like(bound, start), th.ones_like(bound))
        assert th.allclose(function(t)[0], bound, rtol=1e-9)


@pytest.mark.parametrize("n_hard", [0, 1, 30])
def test_the_last_few_are_solved_apart(n_hard):
    rate = th.ones(200, dtype=th.float64)
    bound = th.full_like(rate, 1e-4)
    rate[17 : 17 + n_hard], bound[17 : 17 + n_hard] = 40.0, 0.97
    start, limit = (2 * bound).sqrt() / rate, th.ones_like(rate)
    function, calls = counting(growing(rate))
    expected = find_root(function, bound, start, limit)
    whole = calls.copy()
    calls.clear()

    def rows(index):
        calls.append(0)  # which says that it was asked for
        return counting_rows(growing(rate[index]), calls)

    t = find_root(function, bound, start, limit, rows)
    assert th.allclose(t, expected, rtol=1e-8)
    assert sum(calls) <= sum(whole)
    assert (0 in calls) == (n_hard > 0)


def counting_rows(function, calls):
    return lambda t: calls.append(t.numel()) or function(t)


@pytest.mark.parametrize("shape", [saturating, growing])
def test_unrolled_third_order(monkeypatch, shape):
    monkeypatch.setattr(root, "can_branch", lambda tensor: False)
    rate = 1 + 3 * th.rand(1000, dtype=th.float64)
    bound = 10 ** (-4 * th.rand(1000, dtype=th.float64) - 0.1)
    function = shape(rate)
    t = find_root(function, bound, (2 * bound).sqrt() / rate, th.full_like(rate, 10.0))
    assert (function(t)[0] <= bound * (1 + 1e-9)).all()
    assert th.allclose(function(t)[0], bound, rtol=1e-9)


def test_pole_limit_is_above_the_root():
    a = ratios(4000, 3)
    for bound in (1e-4, 0.1, 3.0, 30.0):
        bound = th.tensor(bound, dtype=th.float64)
        limit = pole_limit(a, bound.sqrt())
        assert ((limit > 0) & (limit <= 1)).all()
        assert (limit * a.amin(-1) > -1).all()
        # At the limit the most negative direction alone is at the bound or beyond it.
        at_limit = kl_along_path((limit * a.amin(-1)).unsqueeze(-1))[0]
        assert ((limit == 1) | (at_limit >= bound)).all()


def test_implicit_gradient():
    """t(c) with c·t² = ε: dt/dc = −t/(2c); a constant t has none."""
    c = th.tensor([2.0, 8.0, 3.0], dtype=th.float64, requires_grad=True)
    t = (0.5 / c.detach()).sqrt()
    slope = 2 * c.detach() * t**2
    slope[2] = th.inf
    result = implicit_gradient(t, c * t**2, slope)
    assert th.equal(result, t)
    result.sum().backward()
    expected = -t / (2 * c.detach())
    expected[2] = 0.0
    assert th.allclose(c.grad, expected)
