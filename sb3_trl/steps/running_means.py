"""Means of what the gradient steps of an update report."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch as th

__all__ = ["RunningMeans"]


class RunningMeans:
    """Means of scalars over the steps of an update, kept on the device until they are read."""

    def __init__(self) -> None:
        self._values: dict[str, list[th.Tensor]] = {}

    def add(self, steps: list[dict[str, th.Tensor]]) -> None:
        """Add the scalars of some steps, which have no gradient history."""
        for key in steps[0]:
            self.extend(key, th.stack([scalars[key] for scalars in steps]))

    def extend(self, key: str, values: th.Tensor) -> None:
        """Add several values of one scalar."""
        self._values.setdefault(key, []).append(values)

    def read(self, last: Mapping[str, int] = MappingProxyType({})) -> dict[str, float]:
        """Return the means, one transfer from the device for all of them.

        :param last: Scalars of which only so many values count, the last ones.
        """
        if not self._values:
            return {}
        whole = {key: th.cat(values) for key, values in self._values.items()}
        means = th.stack([values[-last.get(key, 0) :].double().mean() for key, values in whole.items()]).tolist()
        return dict(zip(whole, means, strict=True))
