"""What goes into an exported policy and what comes out: names, types and shapes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

__all__ = ["Port", "by_key", "dtype_of", "example"]

#: Types that inputs have as their space has them; every other is float32.
_KEPT = ("uint8", "int8", "int16", "int32", "int64", "bool")


class Port(NamedTuple):
    """One input or output; its first axis is the batch.

    :param name: Its name in the file.
    :param dtype: NumPy's name of its type.
    :param shape: Its shape without the batch.
    :param meaning: What it is, for readers.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    meaning: str

    def described(self) -> dict[str, Any]:
        """Return the port for the metadata, with ``"batch"`` as its first axis."""
        return {**self._asdict(), "shape": ["batch", *self.shape]}


def dtype_of(space: spaces.Space) -> str:
    """Return the type of an input: the space's own, or float32 for what is not a whole number of up to 64 bits."""
    name = np.dtype(space.dtype).name
    return name if name in _KEPT else "float32"


def by_key(space: spaces.Space) -> dict[str | None, Any]:
    """Return the spaces of a dictionary by key; any other space under ``None``."""
    return dict(space.spaces.items()) if isinstance(space, spaces.Dict) else {None: space}


def example(port: Port, batch: int) -> th.Tensor:
    """Return zeros of the port's type and shape; ones where something has to be possible."""
    return th.as_tensor(np.full((batch, *port.shape), port.dtype == "bool", dtype=port.dtype))
