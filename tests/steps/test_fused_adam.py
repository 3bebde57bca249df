"""Steps without the calls around them are the optimiser's own."""

import copy

import pytest
import torch as th

from sb3_trl.steps.fused_adam import step_function


def make(**kwargs) -> th.optim.Adam:
    th.manual_seed(0)
    parameters = [th.nn.Parameter(th.randn(5, 3)), th.nn.Parameter(th.randn(4, dtype=th.float64))]
    return th.optim.Adam(parameters, lr=1e-2, eps=1e-5, **({"fused": True} | kwargs))


def draw_gradients(optimizer: th.optim.Adam, missing: int) -> None:
    for index, p in enumerate(optimizer.param_groups[0]["params"]):
        p.grad = None if index == missing else th.randn_like(p)


def test_parameters_and_state_are_the_optimisers_own():
    """With a learning rate that changes, and parameters that some steps leave alone."""
    own, other = make(), make()
    step = step_function(other)
    assert step != other.step
    for k in range(12):
        for optimizer, take in ((own, own.step), (other, step)):
            th.manual_seed(k)
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + k)
            draw_gradients(optimizer, missing=(None, 0, 1)[k % 3])
            take()
        if k == 5:
            other.load_state_dict(copy.deepcopy(own.state_dict()))
    for p, q in zip(own.param_groups[0]["params"], other.param_groups[0]["params"], strict=True):
        assert th.equal(p, q)
        assert all(th.equal(own.state[p][key], other.state[q][key]) for key in own.state[p])


@pytest.mark.parametrize("kwargs", [{"fused": False}, {"weight_decay": 0.1}, {"amsgrad": True}])
def test_what_it_does_not_know_takes_its_own_steps(kwargs):
    optimizer = make(**kwargs)
    assert step_function(optimizer) == optimizer.step


def test_hooks_are_called():
    optimizer, calls = make(), []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    draw_gradients(optimizer, missing=0)
    step_function(optimizer)()
    assert calls == [1]
