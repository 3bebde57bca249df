"""A compiled function returns what the function returns, whatever changes between calls."""

import gc
import weakref

import pytest
import torch as th
from torch import nn
from torch.func import grad_and_value

from sb3_trl import FixPO, SeedBatch
from sb3_trl.steps.compilation import Compiled, pure_forward


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


@pytest.mark.traced
def test_modules_with_several_names_and_weights_in_several_modules():
    """A shared module is left as it was, and a tied weight is exchanged wherever it is."""
    shared, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = shared.weight
    net = nn.ModuleDict({"a": shared, "b": shared, "c": other})

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.net = shared, net

        def forward(self, x):
            return self.net["c"](self.net["b"](self.first(x)))

    module = Both()
    names = [name for name, _ in module.named_parameters()]
    call, x = pure_forward(module), th.randn(2, 3)

    def function(varying, fixed):
        (x,) = varying
        value, gradient = grad_and_value(lambda p: call(p, x).square().sum())(dict(zip(names, fixed, strict=True)))[
            ::-1
        ]
        return (), {"value": value} | gradient

    before = [p.detach().clone() for p in module.parameters()]
    fixed = tuple(2 * p for p in before)
    plain, compiled = function((x,), fixed)[1], Compiled(function)((x,), fixed)[1]
    with th.no_grad():
        for p, value in zip(module.parameters(), fixed, strict=True):
            p.copy_(value)
    expected = module(x).square().sum()
    gradients = th.autograd.grad(expected, list(module.parameters()))
    for result in (plain, compiled):
        assert th.allclose(result["value"], expected, rtol=1e-4)
        assert all(th.allclose(result[name], g, rtol=1e-4) for name, g in zip(names, gradients, strict=True))
    assert all(type(p) is nn.Parameter for p in module.parameters())


@pytest.mark.traced
def test_distributions_are_validated_as_before():
    """Torch, left to itself, ends that for everybody with the first compilation of a process."""
    torch_patches = th._dynamo.eval_frame.TorchPatcher.patch
    torch_patches.cache_clear()
    th.distributions.Distribution.set_default_validate_args(True)
    compiled = Compiled(make(Doubler()))
    call(compiled, (th.ones(()), th.tensor([1, 2])), (th.arange(4.0),))
    assert torch_patches.cache_info().misses == 1, "nothing was tested"
    assert th.distributions.Distribution._validate_args


@pytest.mark.traced
def test_nothing_outlives_its_last_user():
    """Torch keeps what compiles for as long as the process lives, and not what was compiled: models are freed."""
    setting = Doubler()
    kept, compiled = weakref.ref(setting), Compiled(make(setting))
    varying, fixed = (th.ones(()), th.tensor([1, 3])), (th.arange(10.0),)
    for _ in range(2):
        assert compiled(varying, fixed)[0][0].item() == 6.0
    del setting, compiled
    gc.collect()
    assert kept() is None


@pytest.mark.traced
@pytest.mark.parametrize("batch", [False, True])
def test_compiled_models_are_freed_with_their_environments(batch):
    settings = {"n_steps": 64, "batch_size": 32, "n_epochs": 1, "device": "cpu"}
    if batch:
        models = (
            SeedBatch(FixPO, "MlpPolicy", "Pendulum-v1", seeds=range(2), compile=True, **settings).learn(128).models
        )
    else:
        models = [FixPO("MlpPolicy", "Pendulum-v1", compile=True, **settings).learn(128)]
    kept = [weakref.ref(x) for model in models for x in (model, model.env, model.policy)]
    del models
    gc.collect()
    assert [reference() for reference in kept] == [None] * len(kept)
