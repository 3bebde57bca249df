"""Steps are taken exactly where a chunk is not clean, and nothing is looked at twice for it."""

import math

import pytest
import torch as th

from sb3_trl.algorithms.enforcement import refined, step_until_clean
from sb3_trl.table import table

N, CHUNK = 70, 16


class World:
    """Numbers that every step moves, each by an amount of its own: those of the chunk down, the others a little up."""

    def __init__(self, seed: int) -> None:
        generator = th.Generator().manual_seed(seed)
        self.values = th.rand(N, generator=generator, dtype=th.float64) * 1.3
        self.steps: list[list[int]] = []
        self.n_measured = 0
        self.measured: list[int] = []

    def measure(self, index: th.Tensor) -> th.Tensor:
        assert len(index) <= CHUNK
        self.n_measured += len(index)
        self.measured += index.tolist()
        assert len(set(self.measured)) == len(self.measured), "measured twice between two steps"
        return self.values[index]

    def step(self, data, rows) -> None:
        index = rows[0]
        self.steps.append(index.tolist())
        self.measured.clear()
        self.values *= 1.003
        self.values[index] *= 0.8


def is_clean(values: th.Tensor) -> bool:
    return bool(values.max() <= 1)


def passes(world: World, max_steps: int) -> bool:
    """The same without any memory."""
    data = table((th.arange(N),))
    while True:
        before = len(world.steps)
        for rows in data.shuffled().split(CHUNK):
            if is_clean(world.values[rows[0]]):
                continue
            if len(world.steps) == max_steps:
                return False
            world.step(data, rows)
        if len(world.steps) == before:
            return True


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("max_steps", [100, 3])
def test_steps_are_those_of_whole_passes(seed, max_steps):
    own, reference = World(seed), World(seed)
    th.manual_seed(seed)
    n_steps, clean = step_until_clean(table((th.arange(N),)), CHUNK, own.measure, is_clean, own.step, max_steps)
    th.manual_seed(seed)
    assert passes(reference, max_steps) == clean
    assert own.steps == reference.steps
    assert n_steps == len(own.steps) > 0
    assert th.equal(own.values, reference.values)
    assert clean == (max_steps == 100)
    if clean:
        assert own.values.max() <= 1
        assert set(own.measured) == set(range(N)), "every state was seen after the last step"
        assert own.n_measured < (len(own.steps) + 1) * N


def test_without_shuffling_chunks_keep_their_order():
    world = World(0)
    world.values[:] = 0
    step_until_clean(table((th.arange(N),)), CHUNK, world.measure, is_clean, world.step, 5, shuffle=False)
    assert world.measured == list(range(N))


def test_an_error_ends_the_passes():
    def broken(values: th.Tensor) -> bool:
        raise FloatingPointError

    world = World(0)
    assert step_until_clean(table((th.arange(N),)), CHUNK, world.measure, broken, world.step, 5) == (0, False)


@pytest.mark.parametrize("bound", [1e-4, 0.5, 10.0])
def test_refined_measurements_decide_as_exact_ones_do(bound):
    """Whatever rounding does to the quick ones; and exact ones are asked for near the bound alone."""
    exact = bound * th.cat([th.linspace(0, 2, 2001, dtype=th.float64), 1 + 1e-5 * th.randn(50, dtype=th.float64)])
    quick = exact * (1 + 2e-4 * (2 * th.rand(len(exact), dtype=th.float64) - 1))
    asked: list[int] = []

    def asked_for(index: th.Tensor) -> th.Tensor:
        asked.extend(index.tolist())
        return exact[index]

    index = th.randperm(len(exact))
    values = refined(lambda index: quick[index], asked_for, bound)(index)
    assert th.equal(values <= bound, exact[index] <= bound)
    assert 0 < len(asked) < 100 if bound > 0.01 else asked


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_measured_exactly(bad):
    measure = refined(lambda index: th.tensor([0.1, bad, 0.2]), lambda index: index.double(), 0.5)
    assert measure(th.tensor([3, 4, 5])).tolist() == pytest.approx([0.1, 4.0, 0.2])
    measure = refined(lambda index: th.tensor([0.1, bad]), lambda index: th.full((len(index),), math.nan), 0.5)
    assert not measure(th.tensor([3, 4])).isfinite().all()
