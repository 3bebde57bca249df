import ast
import sys
from pathlib import Path

import pytest
import torch as th

import sb3_trl.penalty
from sb3_trl.penalty import halving_search

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


def test_imports_torch_and_the_standard_library_alone():
    tree = ast.parse(Path(sb3_trl.penalty.__file__).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module)
    assert {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"torch"}
