"""Gradient steps of several seeds as one function."""

import torch as th
from support import all_equal
from torch import nn
from torch.func import vmap
from torch.nn import functional as F

from sb3_trl.seeds import lockstep
from sb3_trl.seeds.lockstep import JointStep, Request
from sb3_trl.seeds.random_stream import RandomStream
from sb3_trl.steps.compilation import Compiled
from sb3_trl.steps.running_means import RunningMeans
from sb3_trl.table import table


class Network(nn.Module):
    """Means, and standard deviations of two kinds, in layers of odd sizes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 33), nn.Tanh())
        self.mean, self.raw = nn.Linear(33, size), nn.Linear(33, size)
        self.log_std = nn.Parameter(th.randn(size))

    def forward(self, x):
        latent = self.hidden(x)
        return self.mean(latent), F.softplus(self.raw(latent)) * self.log_std.exp()


def loss(forward, x, y):
    mean, std = forward(x)
    nll = 0.5 * ((y - mean) / std).square().sum(-1) + std.log().sum(-1)
    return nll.mean() + 0.1 * nll.exp().clamp(max=9.0).mean(), {"nll": nll.mean()}


def request(seed: int, size: int) -> Request:
    th.manual_seed(seed)
    network = Network(size)
    data = table((th.randn(10, 3), th.randn(10, size)))
    optimizer = th.optim.Adam(network.parameters(), lr=1e-2)
    return Request(RandomStream(th.device("cpu")), 0.5, "step", loss, network, optimizer, data, 6, RunningMeans(), {})


def test_a_seeds_steps_do_not_depend_on_its_place_nor_on_the_others():
    """To the last digit, in compiled code for vectors, and for what is left at a vector's end."""
    size = 3

    def stepped(step: JointStep, seeds: list[int]) -> dict[str, th.Tensor]:
        requests = [request(seed, size) for seed in seeds]
        step.run(requests)
        return dict(requests[seeds.index(0)].forward.state_dict())

    of_two, of_five = (JointStep(request(9, size), n, batch_size=10) for n in (2, 5))
    expected = stepped(of_two, [0])
    assert not all_equal(expected, dict(request(0, size).forward.state_dict()))
    for step, seeds in [(of_two, [1, 0]), (of_five, [0, 1, 2, 3, 4]), (of_five, [1, 2, 0]), (of_five, [4, 3, 2, 1, 0])]:
        assert all_equal(stepped(step, seeds), expected), seeds


def test_a_compiled_function_of_few_numbers_is_that_of_many():
    """Left to itself, torch would compile loops over few numbers without vectors, whose exp rounds differently."""

    def exponential() -> Compiled:
        def function(varying, fixed):
            return vmap(lambda x: (x.exp(),))(varying[0]), {}

        return Compiled(function, lockstep._CPU_OPTIONS)

    numbers = th.linspace(-3, 3, 200).split(5)
    of_two, of_five = exponential(), exponential()
    for five in numbers:
        assert th.equal(of_two((five[:2].clone(),), ())[0][0], of_five((five,), ())[0][0][:2])
