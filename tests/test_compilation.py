"""A compiled function returns what the function returns, whatever changes between calls."""

import pytest
import torch as th

from sb3_trl.compilation import Compiled


class Doubler:
    """A setting that the compiled code relies on."""

    factor = 2.0


def make(setting):
    def function(varying, fixed):
        x, index = varying
        (table,) = fixed
        picked = table[index]
        return (setting.factor * x + picked.sum(),), {"mean": picked.mean(), "largest": picked.max()}

    return function


def call(function, varying, fixed):
    new, scalars = function(varying, fixed)
    return new[0].item(), scalars["mean"].item(), scalars["largest"].item()


def test_every_call_returns_what_the_function_returns():
    function = make(Doubler())
    compiled, fixed = Compiled(function), (th.arange(10.0),)
    x = th.ones(())
    for k in range(6):
        varying = (x, th.tensor([k, 3]) if k < 4 else th.tensor([k, 3, 1]))  # the fifth call has another shape
        assert call(compiled, varying, fixed) == pytest.approx(call(function, varying, fixed))
        x = compiled(varying, fixed)[0][0]
    fixed[0].mul_(3)  # numbers in fixed tensors may change
    varying = (x, th.tensor([9, 2, 4]))
    assert call(compiled, varying, fixed) == pytest.approx(call(function, varying, fixed))


@pytest.mark.traced
def test_settings_are_looked_at_again_with_other_fixed_tensors():
    setting = Doubler()
    function = make(setting)
    compiled, varying = Compiled(function), (th.ones(()), th.tensor([1, 2]))
    first = (th.arange(4.0),)
    assert call(compiled, varying, first)[0] == 5
    setting.factor = 10.0
    second = (th.arange(4.0),)
    assert call(compiled, varying, second)[0] == 13


def test_what_does_not_change_is_returned_as_it_is():
    def function(varying, fixed):
        x, y = varying
        return (x + fixed[0], y), {}

    compiled, fixed = Compiled(function), (th.ones(2),)
    for k in range(3):
        y = th.full((2,), float(k))
        new, _ = compiled((th.zeros(2), y), fixed)
        assert new[1] is y
        assert th.equal(new[0], th.ones(2))


@pytest.mark.traced
def test_forgetting_lets_tensors_go():
    compiled, fixed = Compiled(make(Doubler())), (th.arange(4.0),)
    varying = (th.ones(()), th.tensor([1, 2]))
    before = call(compiled, varying, fixed)
    compiled.forget()
    assert not compiled._arguments
    assert call(compiled, varying, fixed) == before
