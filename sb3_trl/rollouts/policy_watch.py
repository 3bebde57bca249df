"""Whether somebody changes a policy while it collects a rollout, and what it was before."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from torch import Tensor, nn

__all__ = ["PolicyWatch", "callbacks_in", "leaves_policy_alone"]

#: Where callbacks are from that look at a policy and do not change it.
_KNOWN_MODULES = ("stable_baselines3.common.callbacks", "rl_zoo3.callbacks")

_compare = (ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)).memcmp
_compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def leaves_policy_alone(callback: BaseCallback) -> bool:
    """Return whether a callback, with those that it calls, is one of those that are known not to change a policy."""
    return all(map(_is_known, callbacks_in(callback)))


def callbacks_in(callback: BaseCallback) -> list[BaseCallback]:
    """Return a callback and all that it calls."""
    found: dict[int, BaseCallback] = {}
    waiting = [callback]
    while waiting:
        one = waiting.pop()
        if id(one) not in found:
            found[id(one)] = one
            values = (x if isinstance(x, (list, tuple)) else (x,) for x in vars(one).values())
            waiting += [child for child in chain.from_iterable(values) if isinstance(child, BaseCallback)]
    return list(found.values())


def _is_known(callback: BaseCallback) -> bool:
    cls = type(callback)
    is_of_package = cls.__module__ in _KNOWN_MODULES or cls.__module__.startswith("sb3_trl.")
    has_own_methods = any(name.lstrip("_").startswith("on_") for name in vars(callback))
    return is_of_package and cls is not ConvertCallback and not has_own_methods  # that one calls anybody's function


class PolicyWatch:
    """Notices every change of a policy: of a number, of a tensor, of a layer.

    Numbers are compared bit by bit, since ``parameter.data`` changes without a trace. That takes some microseconds for
    a small network, and less than the network's own pass for a large one.

    :param policy: As it is from now on.
    """

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy
        self.look()

    def look(self) -> None:
        """Take the policy as it is now."""
        self._members: list[tuple[dict[str, Any], str, Any]] = [
            (members, name, member)
            for module in self.policy.modules()
            for members in (module._parameters, module._buffers, module._modules)
            for name, member in members.items()
        ]
        self._tensors = [(x, x.detach().clone()) for x in chain(self.policy.parameters(), self.policy.buffers())]
        self._blocks: list[tuple[Any, int, int, int]] = []
        self._others: list[Tensor] = []
        # Whatever happens to a tensor, its memory is not given to another one as long as it is watched.
        self._memory = [x.detach() for x, _ in self._tensors]
        for now, then in self._tensors:
            if now.device.type == "cpu" and now.is_contiguous():
                self._blocks.append((now.data_ptr, now.data_ptr(), then.data_ptr(), now.nbytes))
            else:
                self._others.append(now)
        self._places, self._bits = list(map(_place, self._others)), _bits(self._others)

    def has_changed(self) -> bool:
        """Return whether the policy is another than when it was last looked at."""
        return (
            any(members.get(name) is not member for members, name, member in self._members)
            or any(place() != address or _compare(address, kept, n) for place, address, kept, n in self._blocks)
            or self._others_have_changed()
        )

    def _others_have_changed(self) -> bool:
        """Return whether tensors have that are on an accelerator, which is waited for once for all of them."""
        if any(_place(x) != place for x, place in zip(self._others, self._places, strict=True)):
            return True
        return not all(map(th.equal, _bits(self._others), self._bits))

    @contextmanager
    def before(self) -> Iterator[None]:
        """Make the policy what it was when it was last looked at, inside the block."""
        members = [(place, name, place.get(name)) for place, name, _ in self._members]
        data = [(tensor, tensor.data) for tensor, _ in self._tensors]
        try:
            for place, name, member in self._members:
                place[name] = member
            for tensor, then in self._tensors:
                tensor.data = then
            yield
        finally:
            for tensor, now in data:
                tensor.data = now
            for place, name, member in members:
                place[name] = member


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Return what tells where a tensor's numbers are, and how they are stored."""
    return tensor.device, tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr()


def _bits(tensors: list[Tensor]) -> list[Tensor]:
    """Return a copy of all that is stored in some tensors, one vector of bytes for each device."""
    by_device: dict[th.device, list[Tensor]] = {}
    for x in tensors:
        by_device.setdefault(x.device, []).append(x.detach().reshape(-1).view(th.uint8))
    return list(map(th.cat, by_device.values()))
