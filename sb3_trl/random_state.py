"""Torch's random numbers, left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch as th
from torch import Tensor

__all__ = ["RandomState", "preserved_random_state", "random_state", "set_random_state"]

#: Of the CPU's generator, and of the device's if it is a GPU.
RandomState: TypeAlias = tuple[Tensor, Tensor | None]


def random_state(device: th.device) -> RandomState:
    """Return where torch's random numbers are, on the CPU and on a device."""
    return th.get_rng_state(), th.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: RandomState, device: th.device) -> None:
    """Go on from what ``random_state`` returned for this device."""
    on_cpu, on_device = state
    th.set_rng_state(on_cpu)
    if on_device is not None:
        th.cuda.set_rng_state(on_device, device)


@contextmanager
def preserved_random_state(device: th.device) -> Iterator[None]:
    """Leave torch's random numbers, on the CPU and on a device, where they were, whatever is drawn inside the block."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)
