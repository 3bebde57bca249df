"""What a simulation comes to that always begins alike: simulated once, and remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

__all__ = ["Beginning", "Settling", "state_of"]

#: All that decides how MuJoCo goes on.
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
#: Bytes of a model's array that is looked at; only meshes, their trees and textures are larger.
_LARGEST = 10_000


class Settling:
    """States that simulations have come to, of the latest beginnings.

    :param size: How many are remembered.
    """

    def __init__(self, size: int = 1000) -> None:
        self.size = size
        self._states: OrderedDict[bytes, NDArray[np.float64]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def settle(self, model: Any, data: Any, beginning: bytes, simulate: Callable[[], None]) -> None:
        """Bring the data to where ``simulate`` does, without it if it has been there from the same beginning.

        What follows from the state, such as positions of bodies, is as old as it was: take a step.

        :param model: MuJoCo's.
        :param data: MuJoCo's.
        :param beginning: Fingerprint of all that decides what is simulated, now.
        :param simulate: Changes the data.
        """
        state = self._states.get(beginning)
        if state is not None:
            mujoco.mj_setState(model, data, state, _STATE)
            return
        simulate()
        self._states[beginning] = state_of(model, data)
        if len(self._states) > self.size:
            self._states.popitem(last=False)


class Beginning:
    """Makes fingerprints of a model and its state: of all numbers but those of meshes and textures.

    :param model: MuJoCo's.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        # To make these arrays, which look into the model's memory, takes longer than to read them.
        self._arrays = _small_arrays(model)
        self._options = _properties(model.opt)

    def of(self, data: Any, *others: Any) -> bytes:
        """Return the fingerprint of the model as it is now.

        :param data: The state.
        :param others: Numbers and arrays that count too.
        """
        options = [getattr(self.model.opt, name) for name in self._options]
        values = (state_of(self.model, data), *self._arrays, *options, *others)
        return blake2b(b"".join(np.asarray(value).tobytes() for value in values), digest_size=16).digest()


def state_of(model: Any, data: Any) -> NDArray[np.float64]:
    """Return a copy of the state: where things are and go, what acts on them, and where the solver begins."""
    state = np.empty(mujoco.mj_stateSize(model, _STATE))
    mujoco.mj_getState(model, data, state, _STATE)
    return state


def _small_arrays(model: Any) -> list[NDArray[Any]]:
    values = (getattr(model, name) for name in _properties(model))
    return [value for value in values if isinstance(value, np.ndarray) and value.nbytes <= _LARGEST]


def _properties(thing: Any) -> list[str]:
    return [name for name, value in vars(type(thing)).items() if isinstance(value, property)]
