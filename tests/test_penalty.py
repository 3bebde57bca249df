"""FixPO's mathematics: the search back to the old policy, divergences and the multiplier."""

import ast
import sys
from pathlib import Path

import pytest
import torch as th
from torch.func import grad, hessian, jacfwd, jacrev, jvp

import sb3_trl.penalty
from sb3_trl.penalty import BetaDual, halving_search, kl_penalty, kl_statistic
from sb3_trl.projections.categorical import bernoulli_kl, categorical_kl

OLD = [0.0, 1.0]


def search(new: list[float], is_feasible, **kwargs) -> tuple[float, th.Tensor, int]:
    """Run the search on two parameters and return λ, where they were left, and how often it asked."""
    parameter, old, calls = th.tensor(new), th.tensor(OLD), []
    scale = halving_search([parameter], [old], lambda: bool(calls.append(1) or is_feasible(parameter)), **kwargs)
    assert th.equal(old, th.tensor(OLD))
    return scale, parameter, len(calls)


def test_a_feasible_policy_stays_bit_for_bit():
    new = [0.1234567, -7.7]
    scale, parameter, calls = search(new, lambda p: True)
    assert scale == 1.0
    assert th.equal(parameter, th.tensor(new))
    assert calls == 1


@pytest.mark.parametrize("radius", [7.0, 3.9, 1.1, 0.3, 1e-3])
def test_finds_the_largest_feasible_fraction_of_the_halvings(radius):
    new = [8.0, 1.0]
    scale, parameter, calls = search(new, lambda p: bool(p[0] <= radius))
    expected = next(2.0**-k for k in range(40) if 8.0 * 2.0**-k <= radius)
    assert scale == expected
    assert calls == 1 - round(th.tensor(expected).log2().item())
    th.testing.assert_close(parameter, th.tensor([8.0 * expected, 1.0]))
    assert parameter[0] <= radius


def test_ends_at_the_old_policy_where_nothing_else_is_feasible():
    scale, parameter, calls = search([8.0, 3.0], lambda p: False)
    assert scale == 0.0
    assert th.equal(parameter, th.tensor(OLD))
    assert calls == 31


def test_max_halvings_is_the_cap():
    scale, parameter, calls = search([8.0, 3.0], lambda p: bool(p[0] < 1e-3), max_halvings=4)
    assert scale == 0.0
    assert th.equal(parameter, th.tensor(OLD))
    assert calls == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_parameters_that_are_not_finite_are_infeasible(value):
    scale, parameter, calls = search([value, 3.0], lambda p: True)
    assert scale == 0.0
    assert th.equal(parameter, th.tensor(OLD))
    assert calls == 0


def test_moves_all_parameters_together_and_without_history():
    module = th.nn.Linear(3, 2)
    old = [p.detach().clone() for p in module.parameters()]
    new = [p + 1 for p in old]
    with th.no_grad():
        for p, value in zip(module.parameters(), new, strict=True):
            p.copy_(value)
    answers = iter([False, False, True])
    assert halving_search(list(module.parameters()), old, lambda: next(answers)) == 0.25
    for p, start in zip(module.parameters(), old, strict=True):
        th.testing.assert_close(p.detach(), start + 0.25)
        assert p.requires_grad
        assert p.grad_fn is None


def test_doubles_keep_their_precision():
    old, new = th.tensor([1.0], dtype=th.float64), th.tensor([1.0 + 1e-12], dtype=th.float64)
    answers = iter([False, True])
    assert halving_search([new], [old], lambda: next(answers)) == 0.5
    assert new.item() - 1 == pytest.approx(5e-13, rel=1e-3)


def test_imports_torch_the_projections_and_the_standard_library_alone():
    tree = ast.parse(Path(sb3_trl.penalty.__file__).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module)
    others = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    assert others == {"torch", "sb3_trl.projections.categorical"}


# --- divergences and their derivatives ---


INF = float("inf")


def log_probabilities(*rows: list[float]) -> th.Tensor:
    return th.tensor(rows, dtype=th.float64).log_softmax(-1)


#: A masked action in the first state, none in the second; p = q in the third.
CATEGORICAL = (
    log_probabilities([0.3, -INF, 1.0, 0.0], [0.5, 0.1, -2.0, 0.0], [0.1, 0.2, 0.3, 0.4]),
    log_probabilities([-1.0, -INF, 0.2, 0.0], [0.0, 1.0, -1.0, 0.5], [0.1, 0.2, 0.3, 0.4]),
)
#: Certain and impossible in both, impossible or certain in p alone, ordinary, equal.
BERNOULLI = (
    th.tensor([[INF, -INF, -INF, INF, 0.5, 1.0]], dtype=th.float64),
    th.tensor([[INF, -INF, 0.3, 0.7, -1.0, 1.0]], dtype=th.float64),
)
DIVERGENCES = {
    "categorical": (lambda p, q: categorical_kl(p.log_softmax(-1), q.log_softmax(-1)), *CATEGORICAL),
    "bernoulli": (bernoulli_kl, *BERNOULLI),
}
of_both = pytest.mark.parametrize("name", DIVERGENCES)


def finite_differences(function, x: th.Tensor) -> th.Tensor:
    """The Jacobian; a number that is not finite stays what it is, and is a constant."""
    columns = []
    for v in 1e-6 * th.eye(x.numel(), dtype=x.dtype):
        ahead, behind = function(x + v.view_as(x)), function(x - v.view_as(x))
        columns.append((ahead - behind) / 2e-6)
    return th.stack(columns, -1).view(*columns[0].shape, *x.shape)


@of_both
def test_divergence_with_impossible_outcomes(name):
    divergence, p, q = DIVERGENCES[name]
    value = divergence(p, q)
    assert value.isfinite().all()
    assert (value >= 0).all()
    assert (divergence(p, p) == 0).all()
    if name == "categorical":
        kept = [0, 2, 3]
        assert th.allclose(value[0], (p[0, kept].exp() * (p[0, kept] - q[0, kept])).sum())
    else:  # −log(1 − q) and −log q
        parts = th.stack([divergence(p[:, i : i + 1], q[:, i : i + 1]) for i in range(6)]).squeeze(-1)
        expected = [0.0, 0.0, -(-q[0, 2]).sigmoid().log().item(), -q[0, 3].sigmoid().log().item()]
        assert th.allclose(parts[:4], th.tensor(expected, dtype=th.float64))
        assert parts[5] == 0


@of_both
@pytest.mark.parametrize("argument", [0, 1])
def test_derivatives_of_divergences(name, argument):
    """First and second ones, in either mode, also where an outcome is impossible."""
    divergence, *arguments = DIVERGENCES[name]
    x = arguments[argument]

    def function(x):
        return divergence(*[x if i == argument else y for i, y in enumerate(arguments)]).sum()

    gradient = grad(function)(x)
    assert th.allclose(gradient, finite_differences(function, x), atol=1e-7)
    direction = th.randn_like(x).sign()
    assert th.allclose(jvp(function, (x,), (direction,))[1], (gradient * direction).sum())
    expected = finite_differences(grad(function), x)
    for second in (hessian(function), jacrev(jacrev(function)), jacrev(jacfwd(function)), jacfwd(jacfwd(function))):
        assert th.allclose(second(x), expected, atol=1e-6)


def test_divergence_is_infinite_where_q_excludes_what_p_does_not():
    p, q = log_probabilities([0.0, 0.0]), log_probabilities([0.0, -INF])
    assert categorical_kl(p, q) == INF
    assert bernoulli_kl(th.tensor([[0.0]]), th.tensor([[-INF]])) == INF


def test_the_multiplier_has_no_derivatives_and_stays_finite():
    dual = BetaDual(0.1, 2.0, 1.0, 0.01)
    assert dual.state.isfinite().all()
    before = dual.state.clone()
    for divergence in (th.tensor(INF), th.tensor(float("nan"))):
        dual.update(divergence)
        assert th.equal(dual.state, before)
    dual.update(th.tensor(0.3, requires_grad=True))
    assert dual.value > 1
    assert not dual.state.requires_grad


def test_beta_takes_adams_steps_on_its_loss_and_stays_above_zero():
    dual = BetaDual(kl_bound=0.5, target_coef=3.0, init=1.0, learning_rate=0.01)
    beta = th.tensor(1.0, dtype=th.float64, requires_grad=True)
    adam = th.optim.Adam([beta], lr=0.01)
    for kl in (1.0, 0.3, 0.1, 0.05, 2.0):
        dual.update(th.tensor(kl))
        adam.zero_grad()
        (beta * (0.5 - 3.0 * th.tensor(kl).double())).backward()
        adam.step()
        assert dual.value.item() == pytest.approx(beta.item(), rel=1e-12)
    for _ in range(500):
        dual.update(th.tensor(0.0))
    assert dual.value.item() == 0
    dual.update(th.tensor(float("nan")))
    assert dual.value.isfinite()


def test_statistics_and_penalty_of_tasks():
    """What is not finite in one task is not in the others', nor is a task without states."""
    kl, tasks = th.tensor([1.0, 2.0, 4.0, float("nan")]), th.tensor([0, 2, 2, 3])
    largest, mean = (kl_statistic(kl, statistic, tasks, 4) for statistic in ("max", "mean"))
    assert largest[:3].tolist() == [1, -INF, 4]
    assert mean[[0, 2]].tolist() == [1, 3]
    assert not mean[1].isfinite()
    assert largest[3].isnan()
    assert mean[3].isnan()
    dual = BetaDual(0.5, 3.0, 1.0, 0.01, n_tasks=3)
    dual.state[:, 0] = th.tensor([2.0, 5.0, 0.5])
    assert kl_penalty(kl[:3], dual.state, tasks[:3]) == (2 * 1 + 0.5 * 2 + 0.5 * 4) / 3
    assert kl_penalty(kl[:3], dual.state[0]) == pytest.approx(2 * 7 / 3)


def test_the_multipliers_of_tasks_are_as_many_duals():
    """Each takes its own steps, none where there is no divergence; there is room for those that come later."""
    several, singles = BetaDual(0.5, 3.0, 1.0, 0.01, n_tasks=2), [BetaDual(0.5, 3.0, 1.0, 0.01) for _ in range(2)]
    for kls in ((1.0, 0.1), (0.3, -INF), (float("nan"), 0.2), (0.01, 2.0)):
        several.update(th.tensor(kls))
        for single, kl in zip(singles, kls, strict=True):
            single.update(th.tensor(kl)) if abs(kl) < INF else None
    assert th.equal(several.state, th.stack([single.state for single in singles]))
    several.set(0.5, 3.0, 0.01, n_tasks=3)
    assert th.equal(several.state[:2], th.stack([single.state for single in singles]))
    assert several.state[2:].tolist() == [[1, 0, 0, 0]] * 2
    loaded = BetaDual(0.5, 3.0, 1.0, 0.01, n_tasks=1)
    loaded.load_state_dict(several.state_dict())
    assert th.equal(loaded.state, several.state)


def test_divergences_equal_torchs():
    logits_p, logits_q = th.randn(2, 50, 4, dtype=th.float64).mul(3).log_softmax(-1)
    expected = th.distributions.kl_divergence(
        th.distributions.Categorical(logits=logits_p), th.distributions.Categorical(logits=logits_q)
    )
    assert th.allclose(categorical_kl(logits_p, logits_q), expected)
    impossible = th.tensor([0.5, 0.5, 0.0]).log()
    assert categorical_kl(impossible, impossible) == 0
    p, q = 3 * th.randn(2, 50, 4, dtype=th.float64)
    expected = th.distributions.kl_divergence(
        th.distributions.Bernoulli(logits=p), th.distributions.Bernoulli(logits=q)
    ).sum(-1)
    assert th.allclose(bernoulli_kl(p, q), expected)
    assert bernoulli_kl(p, p).abs().max() == 0
