"""The statistics of a ``VecNormalize`` in the shape in which the policy has its observations."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trl.deployment.ports import by_key

__all__ = ["Statistics", "VecNormalizeArgument", "find_vec_normalize", "statistics"]

#: ``None``: the one of the model's environments, if any; ``False``: none.
VecNormalizeArgument: TypeAlias = VecNormalize | str | Path | bool | None


class Statistics(NamedTuple):
    """How the observations of one space are normalised: (x − mean) / std, clipped.

    :param mean: In float64, the policy's shape.
    :param std: √(variance + ε), likewise.
    :param clip: Largest absolute value.
    """

    mean: np.ndarray
    std: np.ndarray
    clip: float

    def normalized(self, observations: np.ndarray) -> np.ndarray:
        """Return observations as ``VecNormalize`` does, computed in float64."""
        return np.clip((observations - self.mean) / self.std, -self.clip, self.clip).astype(np.float32)


def find_vec_normalize(argument: VecNormalizeArgument, env: VecEnv | None) -> VecNormalize | None:
    """Return the ``VecNormalize`` that an argument means.

    :param argument: One, the path of a saved one, ``None`` for that of the environments, ``False`` for none.
    :param env: The model's environments.
    :raises ValueError: if there is no such file, or it is something else.
    """
    if argument is None:
        return next((layer for layer in layers(env) if isinstance(layer, VecNormalize)), None)
    if argument is False:
        return None
    found: Any = argument
    if isinstance(argument, (str, Path)):
        if not Path(argument).is_file():
            raise ValueError(f"vec_normalize={str(argument)!r}: there is no such file.")
        with Path(argument).open("rb") as file:
            found = pickle.load(file)
    if not isinstance(found, VecNormalize):
        raise ValueError(
            f"vec_normalize is a {type(found).__name__}: give a VecNormalize, the path of a saved one, or False to "
            "leave normalisation out."
        )
    return found


def layers(env: VecEnv | None) -> Iterator[VecEnv]:
    """Yield vectorised environments from the outermost wrapper inwards."""
    while env is not None:
        yield env
        env = getattr(env, "venv", None)


def statistics(vec_normalize: VecNormalize | None, space: spaces.Space) -> dict[str | None, Statistics]:
    """Return the statistics by key of the policy's observations, ``None`` for observations without keys.

    :param vec_normalize: Whose; ``None`` for none.
    :param space: The policy's observations.
    :raises ValueError: if they are of other observations.
    """
    if vec_normalize is None or not vec_normalize.norm_obs:
        return {}
    moments: Any = vec_normalize.obs_rms
    given = moments if isinstance(moments, dict) else {None: moments}
    known = by_key(space)
    if not given.keys() <= known.keys():
        raise ValueError(
            f"vec_normalize has statistics of {_named(given)}, but the policy's observations are {_named(known)}."
        )
    return {key: _fitted(key, rms, vec_normalize, known[key].shape) for key, rms in given.items()}


def _fitted(key: str | None, moments: Any, vec_normalize: VecNormalize, shape: tuple[int, ...]) -> Statistics:
    name = "" if key is None else f" of {key!r}"
    mean = fitted(np.asarray(moments.mean, np.float64), shape, name)
    variance = fitted(np.asarray(moments.var, np.float64), shape, name)
    return Statistics(mean, np.sqrt(variance + vec_normalize.epsilon), float(vec_normalize.clip_obs))


def fitted(numbers: np.ndarray, shape: tuple[int, ...], name: str = "") -> np.ndarray:
    """Return statistics in the policy's shape: once for each stacked frame, and with channels first.

    :param numbers: As ``VecNormalize`` has them.
    :param shape: The policy's.
    :param name: Of the observations, for the error.
    :raises ValueError: if they do not fit.
    """
    if numbers.shape == shape:
        return numbers
    if numbers.ndim == len(shape) == 3:
        height, width, channels = numbers.shape
        if shape[1:] == (height, width) and shape[0] % channels == 0:
            return np.moveaxis(np.concatenate([numbers] * (shape[0] // channels), -1), -1, 0)
    for axis in (-1, 0):
        if numbers.ndim == len(shape) and shape and shape[axis] % numbers.shape[axis] == 0:
            stacked = np.concatenate([numbers] * (shape[axis] // numbers.shape[axis]), axis)
            if stacked.shape == shape:
                return stacked
    raise ValueError(
        f"vec_normalize has statistics of observations{name} of shape {numbers.shape}, but the policy takes {shape}: "
        "give the one that the policy was trained with, or False to leave normalisation out."
    )


def _named(keys: Any) -> str:
    return "a single array" if None in keys else "a dictionary with " + ", ".join(map(repr, keys))
