"""Entropy control and its schedules."""

import math

import pytest
import torch as th

from sb3_trl.projections import Categorical, EntropySchedule, Gaussian, control_entropy

from . import oracles
from .cases import KINDS, backward, categorical, divergence, gaussian, leaf

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


# --- categoricals ---

SIZES = (4, 3, 2)
LARGEST = math.log(24)


@pytest.mark.parametrize("equality", [False, True])
@pytest.mark.parametrize("share", [1e-6, 1e-3, 0.3, 0.9, 1 - 1e-6, 1.0])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_entropy_of_categoricals(equality, share, spread):
    p = categorical(200, sizes=SIZES, spread=spread)
    bound = share * LARGEST
    controlled = control_entropy(p, bound, equality)
    wanted = th.full((200,), bound, dtype=th.float64)
    if not equality:
        wanted = th.maximum(wanted, p.entropy())
        kept = p.entropy() >= bound
        assert th.equal(controlled.log_probs[kept], p.log_probs[kept])
    assert th.allclose(controlled.entropy(), wanted, rtol=0, atol=1e-11)
    assert th.allclose(controlled.probs.sum(-1), th.ones(200, 3, dtype=th.float64))


@pytest.mark.parametrize("equality", [False, True])
def test_entropy_of_categoricals_in_single_precision(equality):
    p = categorical(200, sizes=SIZES, spread=2.0, dtype=th.float32)
    bound = p.entropy() + th.linspace(-0.2, 0.2, 200)
    bound = bound.clamp(min=0.01, max=LARGEST)
    controlled = control_entropy(p, bound, equality)
    assert controlled.log_probs.dtype == th.float32
    wanted = bound if equality else th.maximum(bound, p.entropy())
    assert th.allclose(controlled.entropy(), wanted, rtol=0, atol=1e-5)


def test_one_exponent_for_all_factors():
    """log p̃ ∝ t·log p: ratios of log-probabilities are kept."""
    p = categorical(20, sizes=(4, 4), spread=2.0)
    controlled = control_entropy(p, 2.0)
    steps = [(x.log_probs - x.log_probs.mean(-1, keepdim=True)).flatten(1) for x in (p, controlled)]
    t = (steps[0] * steps[1]).sum(-1) / steps[0].square().sum(-1)
    assert ((t > 0) & (t <= 1)).all()
    assert th.allclose(steps[1], t.unsqueeze(-1) * steps[0])


def test_entropy_control_is_the_nearest_policy():
    p = categorical(3, sizes=SIZES, spread=2.0)
    bound = p.entropy() + 0.5 * (LARGEST - p.entropy())
    controlled = control_entropy(p, bound)
    for i in range(3):
        probs = [row[:n].numpy() for row, n in zip(p.probs[i], SIZES, strict=True)]
        _, smallest = oracles.entropy_categorical(probs, bound[i].item())
        assert divergence(controlled[i], p[i]).item() == pytest.approx(smallest, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("equality", [False, True])
def test_entropy_with_impossible_actions(equality):
    """The largest entropy is that of the actions that are possible."""
    mask = th.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 0]], dtype=th.bool)
    logits = leaf_of(2 * th.randn(3, 4, dtype=th.float64))
    p = Categorical.from_logits(logits, mask=mask)
    largest = mask.sum(-1).double().log()
    bound = p.entropy().detach() + 0.5 * (largest - p.entropy().detach())
    controlled = control_entropy(p, bound, equality)
    assert th.equal(controlled.impossible, p.impossible)
    assert th.allclose(controlled.entropy(), bound, rtol=0, atol=1e-12)
    backward(controlled)
    assert logits.grad.isfinite().all()
    assert (logits.grad[~mask] == 0).all()


def leaf_of(x: th.Tensor) -> th.Tensor:
    return x.requires_grad_()


def test_one_possible_action_has_no_entropy():
    p = Categorical.from_logits(th.randn(2, 3), mask=th.tensor([[1, 0, 0], [1, 1, 1]], dtype=th.bool))
    assert th.equal(control_entropy(p, th.tensor([0.0, 1.0])).log_probs[0], p.log_probs[0])
    with pytest.raises(ValueError, match=r"bound is 0\.5 nats at state 0, but no policy over .* has more than 0"):
        control_entropy(p, 0.5)


def test_uniform_policies_and_ties_stay_as_they_are():
    logits = th.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]], dtype=th.float64)
    p = Categorical.from_logits(logits)
    assert th.allclose(control_entropy(p, 0.3, equality=True).probs[0], p.probs[0])
    expected = th.tensor([0.5, 0.5, 0.0, 0.0], dtype=th.float64)
    controlled = control_entropy(p, 0.3, equality=True)
    assert th.allclose(controlled.probs[1, 0], expected)
    assert controlled.log_probs.isfinite().all()
    assert th.equal(control_entropy(p, math.log(4)).log_probs[0], p.log_probs[0])


@pytest.mark.parametrize("equality", [False, True])
def test_more_entropy_than_there_is(equality):
    p = categorical(5, sizes=SIZES)
    bound = th.ones(5)
    bound[3] = 3.2
    message = (
        r"entropy bound is 3\.2 nats at state 3, but no policy over the actions possible there has more than 3\.178"
    )
    with pytest.raises(ValueError, match=message):
        control_entropy(p, bound, equality)
    with pytest.raises(ValueError, match=r"3\.2 nats at state 0, but"):
        control_entropy(p, 3.2, equality)
    with pytest.raises(ValueError, match=r"3\.2 nats, but"):
        control_entropy(p[0], 3.2, equality)
    # The entropy of a uniform policy, but for rounding.
    assert th.allclose(control_entropy(p, LARGEST + 1e-7).entropy(), th.full((5,), LARGEST, dtype=th.float64))


@pytest.mark.parametrize("bound", [0.0, -1.0, th.tensor([1.0, 0.5, 0.0])])
def test_no_entropy_at_all(bound):
    p = categorical(3, sizes=SIZES)
    with pytest.raises(ValueError, match="but that of a categorical policy is positive: give a positive entropy bound"):
        control_entropy(p, bound, equality=True)
    assert th.equal(control_entropy(p, bound).log_probs[2], p.log_probs[2])


@pytest.mark.parametrize("equality", [False, True])
def test_gradient_of_categoricals(equality):
    p = categorical(4, sizes=(3, 2), spread=2.0)
    largest = math.log(6)
    bound = p.entropy() + th.tensor([-0.05, 0.05, 0.1, 0.2], dtype=th.float64) * (largest - p.entropy())
    kept = ~p.log_probs.isneginf()
    inputs = p.log_probs[kept].requires_grad_()

    def control(values: th.Tensor) -> th.Tensor:
        log_probs = p.log_probs.masked_scatter(kept, values)
        return control_entropy(Categorical(log_probs.log_softmax(-1)), bound, equality).log_probs[kept]

    assert th.autograd.gradcheck(control, inputs)


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
