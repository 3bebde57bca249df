"""Torch's random numbers, left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th

__all__ = ["preserved_random_state"]


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leave torch's random numbers on the CPU where they were, whatever is drawn inside the block."""
    random_state = th.get_rng_state()
    try:
        yield
    finally:
        th.set_rng_state(random_state)
