"""What TensorBoard shows beside single curves: the trust region in one dashboard, and the hyperparameters."""

from __future__ import annotations

import inspect
import math
import random
import re
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from numbers import Real
from typing import Any

import cloudpickle
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, Logger, TensorBoardOutputFormat
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_trl.schedules import StateBound

__all__ = ["CHARTS", "DashboardCallback", "hyperparameters", "write_layout"]

#: The charts of the dashboard: what is drawn together, values beside their bound. All algorithms share them, so
#: that TensorBoard, which merges the layouts of the runs it shows, draws each chart once.
CHARTS = {
    "KL divergence from the old policy (nats)": (
        "trust_region/kl_mean",
        "trust_region/kl_max",
        "trust_region/kl_bound",
        "fixpo/kl_max",
        "fixpo/kl_bound",
    ),
    "Distance of the means": (
        "trust_region/mean_distance_mean",
        "trust_region/mean_distance_max",
        "trust_region/mean_bound",
    ),
    "Distance of the covariances": (
        "trust_region/cov_distance_mean",
        "trust_region/cov_distance_max",
        "trust_region/cov_bound",
    ),
    "Entropy (nats)": ("trust_region/entropy", "trust_region/entropy_bound"),
    "Share of states projected, and outside": (
        "trust_region/projected_fraction",
        "trust_region/violation_fraction",
    ),
    "FixPO: penalty weight β": ("fixpo/beta",),
    "FixPO: steps of the fixup phase": ("fixpo/fixup_steps",),
}

#: Columns of the HParams tab beside the hyperparameters; TensorBoard takes their values from the curves.
METRICS = ("rollout/ep_rew_mean", "eval/mean_reward", "trust_region/kl_mean", "trust_region/violation_fraction")

#: Arguments of a constructor that do not change what is learned.
_NOT_HYPERPARAMETERS = ("policy", "env", "policy_kwargs", "tensorboard_log", "verbose", "device", "stats_window_size")

_SCHEDULES = (FloatSchedule, LinearSchedule, ConstantSchedule)
_ARRAYS = (np.ndarray, np.generic, th.Tensor)
_LONGEST_TEXT = 500


class DashboardCallback(BaseCallback):
    """Write the dashboard's layout and the hyperparameters to the TensorBoard log, once, as training starts.

    :param prefixes: What the algorithm's keys begin with; charts without such a key are left out.
    """

    def __init__(self, prefixes: Sequence[str]) -> None:
        super().__init__()
        self.prefixes = tuple(prefixes)

    def on_step(self) -> bool:
        """Do nothing, not even count."""
        return True

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        write_layout(self.logger, self.prefixes)
        for output in _tensorboards(self.logger):
            values = HParam(hyperparameters(self.model), dict.fromkeys(METRICS, 0.0))
            output.write({"hparams": values}, {"hparams": ()})


def write_layout(logger: Logger, prefixes: Sequence[str]) -> None:
    """Write the custom-scalars layout of the charts with a key that begins with one of ``prefixes``."""
    charts = {
        title: ["Multiline", [f"{key}$" for key in keys]]
        for title, keys in CHARTS.items()
        if any(key.startswith(tuple(prefixes)) for key in keys)
    }
    for output in _tensorboards(logger) if charts else ():
        output.writer.add_custom_scalars({"Trust region": charts})


def hyperparameters(model: BaseAlgorithm) -> dict[str, bool | float | str | None]:
    """Return what the model was made with, in numbers and strings; ``policy_kwargs`` one by one.

    Whatever was given finds a description, and training goes on as if nobody had asked.
    """
    values = {key: _asked(value) for key, value in _arguments(model).items() if key not in _NOT_HYPERPARAMETERS}
    for key, value in model.policy_kwargs.items():
        # Functions of one argument are rarely schedules here: they make layers.
        values[f"policy/{key}"] = _asked(value) if isinstance(value, _SCHEDULES) else value
    values |= {"algorithm": type(model).__name__, "policy": type(model.policy).__name__, "n_envs": model.n_envs}
    return {_text(key): _described(value) for key, value in sorted(values.items())}


def _arguments(model: BaseAlgorithm) -> dict[str, Any]:
    """Return the arguments that the model was made with, those that it keeps as attributes.

    A subclass may hand on ``**kwargs``, or choose arguments itself: those of the classes it derives from count too, but
    those of SB3's base classes only where its own class hands on all of them.
    """
    kept: dict[str, Any] = {}
    hands_on = True
    for cls in type(model).__mro__:
        if "__init__" not in vars(cls) or (issubclass(OnPolicyAlgorithm, cls) and not hands_on):
            continue
        parameters = _parameters(vars(cls)["__init__"])[1:]
        hands_on = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        for name in named:
            # A property may raise anything, and a method is not what was given.
            with suppress(Exception):
                value = getattr(model, name)
                if not name.startswith("_") and getattr(value, "__self__", None) is not model:
                    kept.setdefault(name, value)
    return kept


def _parameters(function: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except Exception:  # builtins have none
        return []


def _asked(value: Any) -> Any:
    """Return a schedule's value at the start and at the end of training, and anything else as it is.

    A copy is asked, made as SB3 saves it, and its random numbers do not count: a schedule that changes with every call
    is not changed.
    """
    if not _is_schedule(value):
        return value
    try:
        with _random_numbers_untouched():
            schedule = cloudpickle.loads(cloudpickle.dumps(value))
            start, end = float(schedule(1.0)), float(schedule(0.0))
    except Exception:
        return value
    return start if start == end else f"{start:g} to {end:g}"


def _is_schedule(value: Any) -> bool:
    """Return whether it can be called with one number."""
    if inspect.isclass(value) or isinstance(value, StateBound) or not callable(value):
        return False
    positional = [p for p in _parameters(value) if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return sum(p.default is p.empty for p in positional) == 1


@contextmanager
def _random_numbers_untouched() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with th.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _described(value: Any) -> bool | float | str | None:
    """Return a number or a short string, whatever it is."""
    try:
        if isinstance(value, _ARRAYS) and len(value.shape) == 0:
            value = value.tolist()
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, Real):
            return value if type(value) is int and abs(value) < 2**53 else float(value)
        return _text(str(value) if isinstance(value, str) else _DESCRIPTION.repr(value))
    except Exception:
        return _text(type(value).__name__)


def _text(value: str) -> str:
    """Return the text as TensorBoard can store it, without its end if that is far."""
    text = value.encode("utf-8", "replace").decode()
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"


class _Description(reprlib.Repr):
    """Describes objects in few words, without their addresses, which differ from run to run.

    Containers end early, and what cannot say what it is goes by the name of its class.
    """

    def repr1(self, x: Any, level: int) -> str:
        try:
            if isinstance(x, partial):
                given = [self.repr1(value, level - 1) for value in x.args]
                given += [f"{key}={self.repr1(value, level - 1)}" for key, value in x.keywords.items()]
                return f"{self.repr1(x.func, level - 1)}({', '.join(given)})"
            if isinstance(x, _ARRAYS):
                n_numbers = math.prod(x.shape)
                return super().repr1(x.tolist(), level) if n_numbers < 100 else f"{type(x).__name__} {tuple(x.shape)}"
            if inspect.isclass(x) or inspect.isroutine(x):
                return x.__name__
            return super().repr1(x, level)
        except Exception:
            return type(x).__name__

    def repr_instance(self, x: Any, level: int) -> str:
        is_nameless = isinstance(x, StateBound) or type(x).__repr__ is object.__repr__
        return type(x).__name__ if is_nameless else re.sub(" at 0x[0-9a-f]+", "", repr(x))


_DESCRIPTION = _Description()
_DESCRIPTION.maxstring = _DESCRIPTION.maxother = _DESCRIPTION.maxlong = 100
_DESCRIPTION.maxdict = _DESCRIPTION.maxlist = _DESCRIPTION.maxtuple = 20


def _tensorboards(logger: Logger) -> list[TensorBoardOutputFormat]:
    return [output for output in logger.output_formats if isinstance(output, TensorBoardOutputFormat)]
