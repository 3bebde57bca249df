"""Entropy control and its schedules."""

import math

import pytest
import torch as th

from sb3_trl.projections import EntropySchedule, Gaussian, control_entropy

from .cases import KINDS, backward, gaussian, leaf

every_kind = pytest.mark.parametrize("kind", KINDS)
contextual_or_not = pytest.mark.parametrize("contextual", [True, False], ids=["contextual", "shared"])


@every_kind
@contextual_or_not
@pytest.mark.parametrize("equality", [False, True])
@pytest.mark.parametrize("bound", [-3.0, th.tensor(2.0), th.tensor(8.0, dtype=th.float32)])
def test_scalar_bound(kind, contextual, equality, bound):
    p = gaussian(50, dim=3, kind=kind, contextual=contextual)
    controlled = control_entropy(p, bound, equality)
    assert controlled.scale.shape == p.scale.shape
    assert controlled.scale.dtype == th.float64
    assert th.equal(controlled.mean, p.mean)
    wanted = th.full((50,), float(bound), dtype=th.float64)
    if not equality:
        wanted = th.maximum(wanted, p.entropy())
    assert th.allclose(controlled.entropy(), wanted, rtol=0, atol=1e-6)


@every_kind
@contextual_or_not
@pytest.mark.parametrize("equality", [False, True])
def test_bound_per_state(kind, contextual, equality):
    p = gaussian(50, dim=3, kind=kind, contextual=contextual)
    bound = p.entropy() + th.linspace(-2, 2, 50, dtype=th.float64)
    controlled = control_entropy(p, bound, equality)
    assert controlled.is_contextual
    wanted = bound if equality else th.maximum(bound, p.entropy())
    assert th.allclose(controlled.entropy(), wanted, rtol=0, atol=1e-6)


@every_kind
@contextual_or_not
def test_entropy_above_the_bound_comes_back_bit_for_bit(kind, contextual):
    p = gaussian(50, dim=3, kind=kind, contextual=contextual, dtype=th.float32)
    assert th.equal(control_entropy(p, p.entropy().min() - 0.1).scale, p.scale)


@every_kind
def test_all_standard_deviations_are_scaled_alike(kind):
    p = gaussian(5, dim=3, kind=kind)
    controlled = control_entropy(p, p.entropy() + 0.6)
    assert th.allclose(controlled.covariance, math.exp(0.4) * p.covariance)


@every_kind
@pytest.mark.parametrize("equality", [False, True])
def test_gradient(kind, equality):
    p = leaf(gaussian(4, dim=2, kind=kind))
    bound = p.entropy().detach() + th.tensor([-1.0, 0.5, 1.0, -0.5], dtype=th.float64)

    def control(scale: th.Tensor) -> th.Tensor:
        scale = scale if kind == "diagonal" else scale.tril()
        return control_entropy(p.with_scale(scale), bound, equality).scale

    assert th.autograd.gradcheck(control, p.scale)
    backward(control_entropy(p, bound, equality))
    assert p.scale.grad.isfinite().all()


def test_one_dimension_by_hand():
    """H = ½ log(2πe σ²): β = H(σ = 0.5) turns σ = 0.1 into 0.5."""
    bound = 0.5 * math.log(2 * math.pi * math.e * 0.25)
    controlled = control_entropy(Gaussian(th.zeros(2, 1), std=th.tensor([[0.1], [0.9]])), bound)
    assert th.allclose(controlled.std, th.tensor([[0.5], [0.9]]))


INITIAL, DIM = 7.5, 3


@pytest.mark.parametrize("target", [0.0, -0.5, 1.2])
@pytest.mark.parametrize("temperature", [0.5, 0.2, 1.0])
def test_exponential_schedule(target, temperature):
    schedule = EntropySchedule("exp", target, temperature)
    for progress in (0.0, 0.1, 0.5, 1.0):
        expected = target * DIM + (INITIAL - target * DIM) * temperature ** (10 * progress)
        assert schedule(INITIAL, progress, DIM) == pytest.approx(expected)
    assert schedule(INITIAL, 0.0, DIM) == pytest.approx(INITIAL)


def test_exponential_schedule_by_hand():
    schedule = EntropySchedule("exp", target_entropy=0.5, temperature=0.5)
    assert schedule(5.5, 0.5, 3) == pytest.approx(1.5 + 4.0 / 32)
    assert schedule(5.5, 1.0, 3) == pytest.approx(1.5 + 4.0 / 1024)


def test_linear_schedule():
    schedule = EntropySchedule("linear", target_entropy=0.5)
    assert schedule(INITIAL, 0.0, DIM) == pytest.approx(7.5)
    assert schedule(INITIAL, 0.5, DIM) == pytest.approx(4.5)
    assert schedule(INITIAL, 1.0, DIM) == pytest.approx(1.5)
    assert EntropySchedule("linear", 0.5, temperature=0.1)(INITIAL, 0.5, DIM) == pytest.approx(4.5)


@pytest.mark.parametrize("kind", ["exp", "linear"])
def test_the_bound_stays_where_it_is_beyond_the_ends(kind):
    schedule = EntropySchedule(kind, 0.5)
    assert schedule(INITIAL, 1.3, DIM) == schedule(INITIAL, 1.0, DIM)
    assert schedule(INITIAL, -0.1, DIM) == schedule(INITIAL, 0.0, DIM)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="entropy_schedule='cosine' is unknown: choose 'exp', 'linear' or None"):
        EntropySchedule("cosine")


@pytest.mark.parametrize("temperature", [0.0, -0.5, 1.5, math.nan])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match=r"temperature=.* must be in \(0, 1\]; smaller decays faster"):
        EntropySchedule(temperature=temperature)
