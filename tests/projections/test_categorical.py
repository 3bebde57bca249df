"""Categorical distributions: how they are made, what they say, and the divergence between them."""

import itertools
import math

import numpy as np
import pytest
import torch as th
from torch.func import hessian, jacfwd, jacrev, jvp

from sb3_trl.projections import Categorical, Gaussian
from sb3_trl.projections.categorical import bernoulli_kl, categorical_kl

from .cases import categorical, divergence, tilted

INF = math.inf
SIZES = (3, 2, 4)


def test_logits_of_one_factor():
    logits = th.randn(5, 4, dtype=th.float64)
    policy = Categorical.from_logits(logits)
    assert policy.log_probs.shape == (5, 1, 4)
    assert (policy.dim, policy.batch_shape) == (1, (5,))
    assert th.allclose(policy.probs.squeeze(1), logits.softmax(-1))
    assert policy.impossible is None


def test_logits_of_several_factors_are_padded():
    logits = th.randn(2, 5, sum(SIZES), dtype=th.float64)
    policy = Categorical.from_logits(logits, SIZES)
    assert policy.log_probs.shape == (2, 5, 3, 4)
    for factor, part in enumerate(logits.split(SIZES, -1)):
        n = part.shape[-1]
        assert th.allclose(policy.probs[..., factor, :n], part.softmax(-1))
        assert (policy.log_probs[..., factor, n:] == -INF).all()
    assert th.equal(policy.impossible, policy.log_probs == -INF)


def test_sizes_may_be_numpys():
    """``MultiDiscrete.nvec``."""
    logits = th.randn(5, 9)
    expected = Categorical.from_logits(logits, SIZES)
    assert th.equal(Categorical.from_logits(logits, np.array(SIZES)).log_probs, expected.log_probs)


def test_mask():
    logits = th.randn(3, 4, dtype=th.float64)
    mask = th.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 1, 0]], dtype=th.bool)
    policy = Categorical.from_logits(logits, mask=mask)
    assert th.equal(policy.impossible.squeeze(1), ~mask)
    assert th.allclose(policy.probs.sum(-1), th.ones(3, 1, dtype=th.float64))
    assert th.allclose(policy.probs[1, 0, 1:3], logits[1, 1:3].softmax(-1))
    assert policy.log_probs[2, 0].tolist() == [-INF, -INF, 0.0, -INF]


def test_a_mask_reaches_over_several_factors():
    mask = th.tensor([1, 0, 1, 1, 1, 1, 0, 0, 1], dtype=th.bool)
    policy = Categorical.from_logits(th.randn(5, 9), SIZES, mask)
    impossible = [[False, True, False, True], [False, False, True, True], [False, True, True, False]]
    assert policy.impossible.tolist() == [impossible] * 5


def test_bernoulli_is_a_categorical_of_two():
    logits = th.tensor([[0.3, -2.0, INF, -INF]], dtype=th.float64)
    policy = Categorical.from_bernoulli_logits(logits)
    assert policy.log_probs.shape == (1, 4, 2)
    assert th.allclose(policy.probs[..., 1], logits.sigmoid())
    assert th.allclose(policy.probs[..., 0], (-logits).sigmoid())
    finite = logits[:, :2]
    pairs = th.stack([th.zeros_like(finite), finite], -1).flatten(-2)
    assert th.allclose(Categorical.from_logits(pairs, (2, 2)).log_probs, policy.log_probs[:, :2])


@pytest.mark.parametrize("shape", [(3,), (3, 0), (0, 3)])
def test_shape_must_have_factors_and_actions(shape):
    with pytest.raises(ValueError, match=r"log_probs has shape .*: it must end in \(factors, actions\)"):
        Categorical(th.zeros(shape))


@pytest.mark.parametrize("sizes", [(3, 3), (4, 0), (5, -1)])
def test_sizes_must_add_up(sizes):
    with pytest.raises(ValueError, match=r"sizes=\[.*\] must be positive and add up to the 4 logits"):
        Categorical.from_logits(th.zeros(2, 4), sizes)


def test_a_mask_must_leave_an_action():
    mask = th.ones(4, 5, dtype=th.bool)
    mask[2, 3:] = False
    with pytest.raises(ValueError, match="The mask leaves no action for factor 1 at state 2: leave at least one"):
        Categorical.from_logits(th.zeros(4, 5), (3, 2), mask)
    with pytest.raises(ValueError, match="no action for factor 0: leave"):
        Categorical.from_logits(th.zeros(5), mask=th.zeros(5, dtype=th.bool))


def masked() -> Categorical:
    mask = th.tensor([1, 0, 1, 1, 1, 1, 0, 0, 1], dtype=th.bool)
    return Categorical.from_logits(th.randn(5, 9, dtype=th.float64), SIZES, mask)


@pytest.mark.parametrize("make", [lambda: categorical(5, sizes=SIZES), masked], ids=["padded", "masked"])
def test_against_the_product_space(make):
    """Log-probability, entropy and divergence, from the probabilities of all combinations of actions."""
    p = make()
    q = tilted(p, 1.0)
    actions = th.tensor(list(itertools.product(*[range(n) for n in SIZES])))
    joint, other = (th.stack([x.log_prob(a.expand(5, 3)) for a in actions], -1).exp() for x in (p, q))
    assert th.allclose(joint.sum(-1), th.ones(5, dtype=th.float64))
    for i, a in enumerate(actions):
        by_hand = th.stack([p.probs[:, factor, n] for factor, n in enumerate(a)], -1).prod(-1)
        assert th.allclose(joint[:, i], by_hand)
    assert th.allclose(p.entropy(), -th.special.xlogy(joint, joint).sum(-1))
    ratio = th.where(joint > 0, joint / other, 1.0)
    assert th.allclose(p.kl(q), (joint * ratio.log()).sum(-1))


def test_log_prob_takes_actions_as_they_are_stored():
    """Floats or integers, and more of them than policies."""
    policy = categorical(5, sizes=SIZES)
    actions = policy.sample()
    assert th.equal(policy.log_prob(actions.float()), policy.log_prob(actions))
    many = th.stack([actions, policy.sample()])
    assert th.equal(policy.log_prob(many)[0], policy.log_prob(actions))


def test_log_prob_of_an_impossible_action():
    assert masked().log_prob(th.tensor([1, 0, 0]).expand(5, 3)).tolist() == [-INF] * 5


def test_actions_must_have_one_number_per_factor():
    with pytest.raises(ValueError, match=r"actions have shape \(5,\): they must end in \(1,\), one for each factor"):
        categorical(5).log_prob(th.zeros(5))


def test_samples_have_the_probabilities():
    policy = masked()[0:1]
    draws = Categorical(policy.log_probs.expand(100_000, 3, 4)).sample()
    assert draws.shape == (100_000, 3)
    for factor in range(3):
        counts = th.bincount(draws[:, factor], minlength=4).double() / len(draws)
        assert th.allclose(counts, policy.probs[0, factor], atol=0.01)
        assert (counts[policy.impossible[0, factor]] == 0).all()


def test_mode():
    policy = categorical(5, sizes=SIZES)
    assert th.equal(policy.mode(), policy.probs.argmax(-1))
    best = policy.log_prob(policy.mode())
    assert all((policy.log_prob(policy.sample()) <= best).all() for _ in range(20))
    mean = th.randn(5, 3)
    assert th.equal(Gaussian(mean, std=th.ones(3)).mode(), mean)


def test_double_detach_and_index():
    policy = Categorical(categorical(5, sizes=SIZES, dtype=th.float32).log_probs.requires_grad_())
    assert policy.double().log_probs.dtype == th.float64
    assert not policy.detach().log_probs.requires_grad
    assert policy.detach().detach() is not policy
    constant = policy.detach()
    assert constant.detach() is constant
    assert th.equal(policy[1:3].log_probs, policy.log_probs[1:3])
    assert th.equal(policy[th.tensor([4, 0])].log_probs, policy.log_probs[[4, 0]])
    assert repr(policy) == "Categorical(log_probs: (5, 3, 4), torch.float32)"


# --- the divergence ---


def extremes(dtype: th.dtype) -> tuple[Categorical, Categorical]:
    """Two policies each of which all but excludes what the other takes, and the other way round."""
    logits = th.tensor([[0.0, -900.0, -5.0], [-900.0, 0.0, 3.0], [0.0, 0.0, -80.0]], dtype=dtype)
    return Categorical.from_logits(logits), Categorical.from_logits(logits.flip(-1))


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_divergence_of_unlikely_actions(dtype):
    p, q = extremes(dtype)
    assert th.allclose(p.kl(q).double(), divergence(p, q), rtol=1e-5)
    log_p = p.log_probs.requires_grad_()
    categorical_kl(log_p, q.log_probs).sum().backward()
    assert log_p.grad.isfinite().all()


@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-5, 1e-7])
def test_small_divergences_keep_their_digits(size):
    """½ Σ p d² (1 − d/3 + …), to more digits than the sum Σ p·d has."""
    q = categorical(50, sizes=(6,))
    p = tilted(q, size)
    d = p.log_probs - q.log_probs
    series = sum((-1) ** n * d**n / math.factorial(n) for n in range(2, 12))
    expected = (p.probs * series).sum((-2, -1))
    assert th.allclose(p.kl(q), expected, rtol=1e-15 / size + 1e-10, atol=0)


def test_divergence_does_not_mind_what_rounding_does_to_the_normalisation():
    """Policies in float32, measured in float64: 1e-7 is missing in Σ p, and in Σ p·d, which would be below 0."""
    q = categorical(2000, sizes=(6,), dtype=th.float32)
    p = tilted(q, 1e-5)
    assert th.allclose(p.double().kl(q.double()), divergence(p, q), rtol=1e-3, atol=1e-13)
    assert (p.double().kl(q.double()) >= 0).all()
    assert (p.kl(p) == 0).all()


def test_divergence_has_zero_gradient_at_zero():
    log_q = categorical(4, sizes=SIZES).log_probs
    log_p = log_q.clone().requires_grad_()
    categorical_kl(log_p, log_q).sum().backward()
    assert (log_p.grad == 0).all()


def both(log_p: th.Tensor, log_q: th.Tensor) -> th.Tensor:
    return categorical_kl(log_p.log_softmax(-1), log_q.log_softmax(-1)).sum()


@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("case", ["near", "far", "masked"])
def test_derivatives_of_the_divergence(argument, case):
    """First and second ones; far from each other another formula counts."""
    p, q = (x.log_probs.squeeze(1) for x in (categorical(3, spread=2.0), categorical(3, spread=2.0)))
    if case == "far":
        p[0, 0] -= 40
        q[1, 1] -= 40
    if case == "masked":
        p[0, 0] = q[0, 0] = p[1, 1] = q[1, 1] = -INF
        p[2, 2] = -INF
    arguments = [p, q]

    def function(x):
        return both(*[x if i == argument else y for i, y in enumerate(arguments)])

    x = arguments[argument]
    gradient = jacrev(function)(x)
    assert th.allclose(gradient, numeric(function, x), atol=1e-7)
    step = th.randn_like(x).sign()
    assert th.allclose(jvp(function, (x,), (step,))[1], (gradient * step).sum())
    leaf = x.clone().requires_grad_()
    function(leaf).backward()
    assert th.allclose(leaf.grad, gradient)
    expected = numeric(jacrev(function), x)
    for second in (hessian(function)(x), jacrev(jacfwd(function))(x)):
        assert th.allclose(second, expected, atol=1e-6)


def numeric(function, x: th.Tensor) -> th.Tensor:
    columns = []
    for v in 1e-6 * th.eye(x.numel(), dtype=x.dtype):
        columns.append((function(x + v.view_as(x)) - function(x - v.view_as(x))) / 2e-6)
    return th.stack(columns, -1).view(*columns[0].shape, *x.shape)


def test_the_second_derivative_at_equal_policies_is_the_fisher_information():
    log_q = categorical(sizes=(4,)).log_probs.squeeze(0)
    p = log_q.exp()
    fisher = th.diag(p) - th.outer(p, p)
    assert th.allclose(hessian(lambda z: both(z, log_q))(log_q), fisher)


def test_divergence_from_what_excludes_an_action():
    p = Categorical.from_logits(th.tensor([[0.0, 0.0, 0.0]]))
    q = Categorical.from_logits(th.tensor([[0.0, 0.0, -INF]]))
    assert p.kl(q) == INF
    assert th.allclose(q.kl(p), th.tensor(math.log(1.5)))


def test_divergence_of_what_is_too_unlikely_to_be_a_number():
    """p is 0 in floating point, and q excludes the action."""
    for gap in (800.0, 1e9):
        log_p = th.tensor([[0.0, -gap]], dtype=th.float64, requires_grad=True)
        value = categorical_kl(log_p, th.tensor([[0.0, -INF]], dtype=th.float64))
        value.sum().backward()
        assert value == 0
        assert (log_p.grad == 0).all()


def test_divergence_of_bernoullis():
    logits_p, logits_q = th.randn(2, 50, 3, dtype=th.float64)
    p, q = logits_p.sigmoid(), logits_q.sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(-1)
    assert th.allclose(bernoulli_kl(logits_p, logits_q), expected)


def test_empty_batch():
    policy = categorical(0, sizes=SIZES)
    assert policy.entropy().shape == policy.kl(policy).shape == (0,)
    assert policy.sample().shape == policy.mode().shape == (0, 3)
    single = Categorical(th.zeros(0, 1, 4))
    assert single.impossible is None


def test_gradients_are_finite_where_an_action_is_impossible():
    """Of everything, in either mode."""
    mask = th.tensor([1, 0, 1, 1, 1, 1, 0, 0, 1], dtype=th.bool)
    logits = th.randn(5, 9, dtype=th.float64)
    other = masked()

    def function(logits):
        policy = Categorical.from_logits(logits, SIZES, mask)
        actions = th.zeros(5, 3)
        return policy.log_prob(actions).sum() + policy.entropy().sum() + policy.kl(other).sum() + other.kl(policy).sum()

    gradient = jacrev(function)(logits)
    assert gradient.isfinite().all()
    assert (gradient[:, ~mask] == 0).all()
    assert th.allclose(gradient, numeric(function, logits), atol=1e-6)
    assert th.allclose(jacfwd(function)(logits), gradient)
