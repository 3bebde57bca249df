"""A compiled evaluation is the function, for every network of the architecture."""

import torch as th
from torch import nn

from sb3_trl.steps.evaluation import CompiledEvaluation
from sb3_trl.table import Shared, table


def network(seed: int) -> nn.Module:
    th.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
    with th.no_grad():
        net[1].running_mean.copy_(th.randn(8))
    return net.eval()


def function(forward, x, target, scale):
    return (forward(x).double() - target).square().sum(-1) * scale


def test_values_are_those_of_the_network_that_is_given():
    """Of either network, at any number of rows, while parameters change; nothing is compiled again."""
    nets = [network(0), network(1)]
    tables = [table((th.randn(50, 3), th.randn(50, 2), Shared(th.tensor(float(k + 1))))) for k in range(2)]
    evaluation = CompiledEvaluation(function, nets[0], tables[0])
    th._dynamo.utils.counters.clear()
    for k in (0, 0, 1, 0, 1, 1):
        with th.no_grad():
            nets[k][0].weight.mul_(1.1)
            nets[k][1].running_mean.add_(0.1)
        for n in (16, 5, 1):
            index = th.randperm(50)[:n]
            before = th.get_rng_state()
            value = evaluation.of(nets[k], tables[k], 16)(index)
            assert th.equal(th.get_rng_state(), before)
            expected = function(nets[k], *tables[k].part(tables[k].at(index).rows))
            assert value.shape == (n,)
            assert value.dtype == th.float64
            assert not value.requires_grad
            assert th.allclose(value, expected, rtol=1e-4)
    assert th._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    evaluation.forget()
    assert not evaluation._compiled._arguments
