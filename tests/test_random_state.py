"""Torch's random numbers are left where they were, those of a GPU among them."""

import pytest
import torch as th

from sb3_trl.random_state import preserved_random_state
from sb3_trl.seeds.random_stream import RandomStream


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose generator is a counter."""
    counter = th.zeros(1)
    monkeypatch.setattr(th.cuda, "get_rng_state", lambda device: counter.clone())
    monkeypatch.setattr(th.cuda, "set_rng_state", lambda state, device: counter.copy_(state))
    return counter


def draw(gpu: th.Tensor) -> tuple[float, float]:
    gpu.add_(1)
    return gpu.item(), th.rand(1).item()


def test_what_is_drawn_in_the_block_leaves_no_trace(gpu):
    th.manual_seed(0)
    draws = [draw(gpu) for _ in range(2)]
    th.manual_seed(0)
    gpu.zero_()
    first = draw(gpu)
    with preserved_random_state(th.device("cuda")):
        draw(gpu)
    assert [first, draw(gpu)] == draws


def test_a_stream_goes_on_where_it_was(gpu):
    th.manual_seed(0)
    stream = RandomStream(th.device("cuda"))
    draws = [draw(gpu) for _ in range(2)]
    with stream:
        assert draw(gpu) == draws[0]
    outside = gpu.item()
    with stream:
        assert draw(gpu) == draws[1]
    assert gpu.item() == outside
