"""From the environment's observations to what a features extractor takes, in plain float32 operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from torch import Tensor, nn
from torch.nn import functional as F

from sb3_trl.deployment.normalization import Statistics
from sb3_trl.deployment.ports import Port, by_key, dtype_of

__all__ = ["Observation", "Observations"]


class Observation(nn.Module):
    """One observation space: the order of channels, normalisation, scaling of images, one-hot vectors.

    :param port: The input.
    :param space: The policy's space.
    :param channels_last: Whether the input is an image with its channels last, and the policy's first.
    :param statistics: How the observations are normalised, if they are.
    :param scale_images: Whether images are divided by 255.
    """

    def __init__(
        self,
        port: Port,
        space: spaces.Space,
        channels_last: bool,
        statistics: Statistics | None,
        scale_images: bool,
    ) -> None:
        super().__init__()
        self.port = port
        self.space = space
        self.channels_last = channels_last
        self.statistics = statistics
        self.divisor = 255.0 if scale_images and is_image_space(space) else None
        self.one_hot = nn.ModuleList(_OneHot(size) for size in _sizes(space))
        if statistics is not None:
            # A mean in two parts: what is left of x − mean has every digit that float32 has, however large both are.
            coarse = statistics.mean.astype(np.float32)
            self.register_buffer("coarse_mean", th.as_tensor(coarse))
            self.register_buffer("fine_mean", th.as_tensor((statistics.mean - coarse).astype(np.float32)))
            self.register_buffer("std", th.as_tensor(statistics.std.astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the observations as the policy's features extractor has them."""
        if self.one_hot:
            columns = x.reshape(-1, len(self.one_hot)).long().unbind(-1)
            return th.cat([table(column) for table, column in zip(self.one_hot, columns, strict=True)], -1)
        x = x.float()
        if self.channels_last:
            x = x.permute(0, 3, 1, 2)
        if self.statistics is not None:
            coarse, fine, std = self._moments()
            x = ((x - coarse) - fine) / std
            x = x.clamp(-self.statistics.clip, self.statistics.clip)
        return x if self.divisor is None else x / self.divisor

    def _moments(self) -> Any:
        return self.coarse_mean, self.fine_mean, self.std


class _OneHot(nn.Module):
    """One-hot vectors by looking them up, so that what is not among the possible numbers is an error."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("rows", th.eye(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows ``(batch, size)`` of numbers ``(batch,)``."""
        rows: Any = self.rows
        return F.embedding(x, rows)


class Observations(nn.Module):
    """All observations of a policy: of one space, or of a dictionary's.

    :param space: The policy's space.
    :param raw: The space before normalisation, whose types the inputs have.
    :param channels_last: Keys of images that come with their channels last; ``None`` for the observation itself.
    :param statistics: By key.
    :param scale_images: Whether images are divided by 255.
    """

    def __init__(
        self,
        space: spaces.Space,
        raw: spaces.Space,
        channels_last: set[str | None],
        statistics: Mapping[str | None, Statistics],
        scale_images: bool,
    ) -> None:
        super().__init__()
        self.has_keys = isinstance(space, spaces.Dict)
        known = by_key(space)
        parts = []
        for key, part in known.items():
            part_raw: Any = raw[key] if isinstance(raw, spaces.Dict) and key is not None else raw
            port = _port(key, part, part_raw, key in channels_last)
            parts.append(Observation(port, part, key in channels_last, statistics.get(key), scale_images))
        self.keys = list(known)
        self.parts = nn.ModuleList(parts)

    @property
    def ports(self) -> list[Port]:
        """The inputs, in order."""
        parts: Any = self.parts
        return [part.port for part in parts]

    def forward(self, *tensors: Tensor) -> Any:
        """Return a tensor, or a dictionary of tensors, for the features extractor."""
        done = [part(x) for part, x in zip(self.parts, tensors, strict=True)]
        return dict(zip(self.keys, done, strict=True)) if self.has_keys else done[0]


def _port(key: str | None, space: spaces.Space, raw: spaces.Space, channels_last: bool) -> Port:
    shape = tuple(int(n) for n in space.shape or ())
    meaning = type(space).__name__
    if len(shape) == 3 and is_image_space(space, check_channels=False):
        meaning = "image, channels last" if channels_last else "image, channels first"
    name = "observation" if key is None else f"observation.{key}"
    return Port(name, dtype_of(raw), (*shape[1:], shape[0]) if channels_last else shape, meaning)


def _sizes(space: spaces.Space) -> list[int]:
    """Return how many values each whole number of a space has that becomes a one-hot vector."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return [int(n) for n in space.nvec] if isinstance(space, spaces.MultiDiscrete) else []
