"""A policy is watched where somebody may change it, and only there."""

import torch as th
from changes import Calls, make
from stable_baselines3.common.callbacks import CallbackList, EveryNTimesteps
from torch import nn

from sb3_trl import TRPL
from sb3_trl.rollouts.policy_watch import PolicyWatch, leaves_policy_alone


def test_nothing_is_computed_twice_where_nothing_changes():
    """A policy that is changed by nobody is evaluated in one piece, under callbacks that are known and others."""
    lengths = []
    for callback in (None, Calls(lambda *_: None, "step")):
        model = make(TRPL)
        model.policy.value_net.register_forward_hook(lambda _, inputs, __: lengths.append(len(inputs[0])))
        model.learn(64, callback)
        assert lengths.count(64) >= 1
        assert set(lengths) <= {64, 16, 2, 1}, "the rollout, minibatches, the last values, the ends of episodes"


def test_which_callbacks_are_watched():
    ours = make(TRPL)._init_callback(None)
    assert leaves_policy_alone(ours)
    known, foreign = EveryNTimesteps(2, CallbackList([])), Calls(lambda *_: None)
    assert leaves_policy_alone(CallbackList([ours, known]))
    assert not leaves_policy_alone(make(TRPL)._init_callback(lambda *_: True))
    assert not leaves_policy_alone(CallbackList([EveryNTimesteps(2, foreign)]))
    known.callback._on_step = lambda: True
    assert not leaves_policy_alone(known)


def test_a_watch_notices_every_change_and_looks_back():
    net = nn.Sequential(nn.Linear(3, 40), nn.BatchNorm1d(40), nn.Tanh(), nn.Linear(40, 2)).eval()
    net[0].weight.data = th.randn(3, 40).t()  # not contiguous
    x = th.randn(5, 3)
    watch, expected = PolicyWatch(net), net(x)

    def one_number() -> None:
        net[3].weight.data[1, 17] += 1e-6

    def another_shape() -> None:
        net[3].weight.data = th.randn(4, 40)
        net[3].bias.data = th.randn(4)

    changes = [
        one_number,
        another_shape,
        lambda: net[0].weight.data.mul_(1.01),
        lambda: net[1].running_mean.add_(1),
        lambda: setattr(net[3], "weight", nn.Parameter(net[3].weight.detach().clone())),
        lambda: net.__setitem__(2, nn.ReLU()),
    ]
    for change in changes:
        watch.look()
        assert not watch.has_changed()
        expected = net(x)
        change()
        assert watch.has_changed()
        now = net(x)
        with watch.before():
            assert th.equal(net(x), expected)
        assert th.equal(net(x), now)


def test_tensors_that_cannot_be_compared_in_place_are_compared_bit_by_bit_too():
    """Those of a GPU, and those that are not contiguous."""
    net = nn.Linear(2, 3)
    data = th.tensor([[1.0, th.nan, 0.0], [3.0, 4.0, 5.0]])
    net.weight.data = data.t()
    watch = PolicyWatch(net)
    assert not watch.has_changed(), "what is not a number is what it was"

    changes = [
        lambda: net.weight.data[2, 0].neg_(),
        lambda: setattr(net.weight, "data", net.weight.data.t().clone().t()),
        lambda: net.weight.data[1, 1].add_(1e-6),
        lambda: net.double(),
        lambda: net.to("meta"),
    ]
    for change in changes:
        watch.look()
        assert not watch.has_changed()
        change()
        assert watch.has_changed()
