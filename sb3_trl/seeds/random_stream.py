"""Torch's random numbers of one seed among others."""

from __future__ import annotations

from typing import Any

import torch as th
from torch import Tensor

__all__ = ["RandomStream"]


class RandomStream:
    """Torch's random numbers of one seed: inside the block, torch goes on where it was when the block was left.

    Starts where torch is now. Outside, torch is where it was before the block, however that ends.

    :param device: Its generator is kept besides the CPU's.
    """

    def __init__(self, device: th.device) -> None:
        self._device = device
        self._own = self._read()

    def __enter__(self) -> None:
        self._others = self._read()
        self._write(self._own)

    def __exit__(self, *_: Any) -> None:
        own = self._read()
        self._write(self._others)
        self._own = own

    def restore(self) -> None:
        """Leave torch where the stream is."""
        self._write(self._own)

    def _read(self) -> tuple[Tensor, Tensor | None]:
        return th.get_rng_state(), th.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None

    def _write(self, states: tuple[Tensor, Tensor | None]) -> None:
        th.set_rng_state(states[0])
        if states[1] is not None:
            th.cuda.set_rng_state(states[1], self._device)
