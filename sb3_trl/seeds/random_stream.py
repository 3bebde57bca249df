"""Torch's random numbers of one seed among others."""

from __future__ import annotations

from typing import Any

import torch as th

from sb3_trl.random_state import random_state, set_random_state

__all__ = ["RandomStream"]


class RandomStream:
    """Torch's random numbers of one seed: inside the block, torch goes on where it was when the block was left.

    Starts where torch is now. Outside, torch is where it was before the block, however that ends.

    :param device: Its generator is kept besides the CPU's.
    """

    def __init__(self, device: th.device) -> None:
        self._device = device
        self._own = random_state(device)

    def __enter__(self) -> None:
        self._others = random_state(self._device)
        set_random_state(self._own, self._device)

    def __exit__(self, *_: Any) -> None:
        own = random_state(self._device)
        set_random_state(self._others, self._device)
        self._own = own

    def restore(self) -> None:
        """Leave torch where the stream is."""
        set_random_state(self._own, self._device)
