"""Checkpoints: what a run that is interrupted goes on from.

A checkpoint is one file, a zip archive, written beside the one before and renamed: it is there as a whole or not at
all. It holds the model as SB3 saves it, and everything else that training changes, but for the environments.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import time
import warnings
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkstemp
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_trl.random_state import random_state, set_random_state
from sb3_trl.study.transfer import normalizations, set_statistics, statistics

__all__ = [
    "UNREADABLE",
    "Begun",
    "Checkpoint",
    "Checkpoints",
    "can_go_on",
    "is_whole",
    "own_state",
    "read_begun",
    "read_checkpoint",
    "restore",
    "write_checkpoint",
]

#: Of what a checkpoint holds; one of another form is not read.
_FORMAT = 1
#: What reading a file raises that is no checkpoint, or was damaged; a disk that does not answer raises something else.
UNREADABLE = (ValueError, LookupError, TypeError, EOFError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)
#: Not a callback's own.
_SHARED = ("model", "locals", "globals", "parent")
#: Statistics of Gymnasium's wrappers, which are lost when an environment is made anew.
_STATISTICS = ("obs_rms", "return_rms")


class Begun(NamedTuple):
    """A run that has a checkpoint: its settings, and how many steps it has made."""

    settings: dict[str, Any]
    steps: int


class Checkpoint(NamedTuple):
    """A run in the middle of its training.

    :param begun: Its settings and steps.
    :param model: The model, as SB3 saves it.
    :param state: Everything else.
    """

    begun: Begun
    model: bytes
    state: dict[str, Any]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in the place of the one before; whatever interrupts this, one of the two is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = mkstemp(prefix=f".{path.name}", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("begun.json", json.dumps({"format": _FORMAT, **checkpoint.begun._asdict()}))
                archive.writestr("model.zip", checkpoint.model)
                archive.writestr("state.pkl", pickle.dumps(checkpoint.state))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Return whether a file is a checkpoint that can be read, bit for bit as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None
        read_begun(path)
    except UNREADABLE:
        return False
    return whole


def read_begun(path: Path) -> Begun:
    """Return the settings and steps of the run that a checkpoint is of."""
    with zipfile.ZipFile(path) as archive:
        content = json.loads(archive.read("begun.json"))
    if content["format"] != _FORMAT:
        raise ValueError(f"{path} is a checkpoint of another version.")
    return Begun(content["settings"], content["steps"])


def read_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint that ``write_checkpoint`` wrote."""
    begun = read_begun(path)
    with zipfile.ZipFile(path) as archive:
        return Checkpoint(begun, archive.read("model.zip"), pickle.loads(archive.read("state.pkl")))


# --- what training changes ---


def can_go_on(model: BaseAlgorithm) -> bool:
    """Return whether a checkpoint would hold all that training has learned.

    It would not for algorithms with a replay buffer, nor where environments themselves keep statistics.
    """
    if not isinstance(model, OnPolicyAlgorithm) or model.env is None:
        return False
    return not any(model.env.unwrapped.has_attr(name) for name in _STATISTICS)


def own_state(model: BaseAlgorithm, callbacks: Sequence[BaseCallback]) -> dict[str, Any]:
    """Return what SB3 does not save with the model: statistics, random numbers, what callbacks have counted."""
    return {
        "normalizations": [statistics(env) for env in normalizations(model.env)],
        "random": (random_state(model.device), np.random.get_state(), random.getstate()),  # noqa: NPY002
        "callbacks": {name: _plain_members(callback) for name, callback in _named(callbacks).items()},
    }


def restore(
    checkpoint: Checkpoint, model: BaseAlgorithm, callbacks: Sequence[BaseCallback], evaluation_env: VecEnv, seed: int
) -> BaseAlgorithm:
    """Return the model of a checkpoint, with the environments of one that was made like it.

    Environments begin a new episode, of which nothing is known yet: their seeds follow from the run's and the steps
    made, so that no episode comes twice.

    :param checkpoint: The checkpoint.
    :param model: The model as it was when training began.
    :param callbacks: Those of training, as they were then; they go on from what they had counted.
    :param evaluation_env: Its episodes are new ones too.
    :param seed: The run's.
    """
    assert model.env is not None
    restored = type(model).load(io.BytesIO(checkpoint.model), env=model.env, device=model.device)
    for env, values in zip(normalizations(model.env), checkpoint.state["normalizations"], strict=True):
        set_statistics(env, values)
    for name, callback in _named(callbacks).items():
        vars(callback).update(checkpoint.state["callbacks"].get(name, {}))
    seeds = np.random.SeedSequence([seed, checkpoint.begun.steps]).generate_state(2)
    model.env.seed(int(seeds[0] >> 1))  # some simulators take no more than 31 bits
    evaluation_env.seed(int(seeds[1] >> 1))
    return restored


def _named(callbacks: Sequence[BaseCallback]) -> dict[str, BaseCallback]:
    """Return callbacks, and those that they call, each by a name that is the same in every process."""
    names: dict[str, BaseCallback] = {}
    waiting: list[tuple[str, Any]] = [("", callbacks)]
    while waiting:
        prefix, value = waiting.pop()
        for index, one in enumerate(value if isinstance(value, list | tuple) else [value]):
            if isinstance(one, BaseCallback) and all(one is not known for known in names.values()):
                names[f"{prefix}{index}"] = one
                waiting += [(f"{prefix}{index}.{key}.", own) for key, own in vars(one).items()]
    return names


def _plain_members(callback: BaseCallback) -> dict[str, Any]:
    """Return a callback's numbers, and what it keeps of them; texts name the folders of this training."""
    return {key: value for key, value in vars(callback).items() if key not in _SHARED and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str | int | float) for key in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple | deque | set):
        return all(map(_is_plain, value))
    if isinstance(value, np.ndarray | np.generic):
        return not value.dtype.hasobject
    return value is None or isinstance(value, bool | int | float)


class Checkpoints(BaseCallback):
    """Saves a run now and then, at the beginning of a rollout, and takes up its random numbers where it goes on.

    It comes last: what the others keep is saved as they leave it.

    :param save: Writes a checkpoint.
    :param minutes: It is called at most so often.
    :param going_on: The checkpoint that training goes on from, ``None`` if it is new.
    """

    def __init__(self, save: Callable[[], None], minutes: float, going_on: Checkpoint | None) -> None:
        super().__init__()
        self._save = save
        self._seconds = 60 * minutes
        self._going_on = going_on

    def _on_training_start(self) -> None:
        """Take up the random numbers: only now has everything been made that draws some."""
        self._first, self._last = self.model.num_timesteps, time.monotonic()
        if self._going_on is not None:
            torch, numpy, python = self._going_on.state["random"]
            set_random_state(torch, self.model.device)
            np.random.set_state(numpy)  # noqa: NPY002
            random.setstate(python)
            self._going_on = None

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps == self._first or time.monotonic() < self._last + self._seconds:
            return
        try:
            self._save()
        except OSError as error:  # a full disk may have room again: training is worth more than this
            warnings.warn(f"A checkpoint cannot be written: {error}. Training goes on.", stacklevel=2)
        self._last = time.monotonic()

    def _on_step(self) -> bool:
        return True
