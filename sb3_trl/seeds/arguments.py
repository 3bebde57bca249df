"""What a ``SeedBatch`` can be given: checks, each with a sentence that says what to give instead."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

__all__ = ["as_seeds", "check_alike", "check_apart", "environment_maker", "own_callbacks"]

_LARGEST_SEED = 2**32 - 1  # of NumPy's, which SB3 sets with torch's
_MAY_DIFFER = {"seed", "tensorboard_log", "verbose"}


def as_seeds(seeds: Any) -> list[int]:
    """Return seeds, of Python's or NumPy's integers, as Python's.

    :raises ValueError: for anything else, for none, and for equal ones.
    """
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise ValueError(f"seeds={seeds!r}: give a list of different integers, such as range(3) for three seeds.")
    numbers = [_as_seed(seed) for seed in seeds]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds={numbers}: give one or more different seeds.")
    return numbers


def _as_seed(seed: Any) -> int:
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number <= _LARGEST_SEED:
        raise ValueError(f"{seed!r} is no seed: give integers from 0 to {_LARGEST_SEED}.")
    return number


def environment_maker(env: Any) -> Callable[[int], GymEnv]:
    """Return the function that maps a seed to its environment.

    :param env: That function, or an environment's id.
    :raises ValueError: for an environment, which only one model could step.
    """
    if isinstance(env, str):
        return lambda seed: gym.make(env)
    if isinstance(env, gym.Env | VecEnv) or not callable(env):
        raise ValueError(
            f"env={env!r}: every seed needs environments of its own. Give an environment's id, or a function that "
            "maps a seed to an environment, such as lambda seed: make_vec_env('Pendulum-v1', n_envs=1, seed=seed)."
        )
    return env


# --- models of one configuration ---


def check_apart(models: Sequence[BaseAlgorithm]) -> None:
    """Check that no two models share what each changes: themselves, networks, environments and their statistics.

    :raises ValueError: if they do.
    """
    owners: dict[int, BaseAlgorithm] = {}
    for model in models:
        own = {id(part): part for part in [model, model.policy, *_parts(model.env)]}
        for key, part in own.items():
            if key in owners:
                raise ValueError(
                    f"Two of the models share one {type(part).__name__}, and each would change it under the other: "
                    "make models, environments and wrappers anew for every seed."
                )
            owners[key] = model


def _parts(env: Any) -> Iterator[Any]:
    """Yield an environment and all that it wraps, with what normalisations have counted."""
    if env is None:
        return
    yield env
    for name in ("obs_rms", "ret_rms"):
        counted = vars(env).get(name)
        yield from counted.values() if isinstance(counted, dict) else [counted] if counted is not None else []
    inner = [vars(env).get("venv"), vars(env).get("env"), *vars(env).get("envs", ())]
    for part in inner:
        yield from _parts(part)


def check_alike(models: Sequence[BaseAlgorithm]) -> None:
    """Check that models differ in their seeds alone, and in what callbacks may have changed where one has learned more.

    :raises ValueError: if they do not.
    """
    for model in models[1:]:
        have_learned_alike = model.num_timesteps == models[0].num_timesteps
        first = _traits(models[0], have_learned_alike)
        for name, value in _traits(model, have_learned_alike).items():
            if name not in first or first[name] != value:
                raise ValueError(
                    f"The models of a batch may differ in their seeds alone, but {name} is {first.get(name)} in one "
                    f"and {value} in another: make all of them, and their environments, alike."
                )


def _traits(model: BaseAlgorithm, with_arguments: bool) -> dict[str, Any]:
    """Return what must be equal, by what it is called; with the numbers and names that the model was made with."""
    traits: dict[str, Any] = {
        "the algorithm": type(model).__name__,
        "the observation space": model.observation_space,
        "the action space": model.action_space,
        "the number of environments": model.n_envs,
        "the policy": type(model.policy).__name__,
        "the device": model.device,
        "the network": "\n" + str(model.policy),
        "the shapes of the network's parameters": {name: tuple(p.shape) for name, p in model.policy.named_parameters()},
    }
    for name in inspect.signature(type(model).__init__).parameters if with_arguments else ():
        value = vars(model).get(name)
        if name not in _MAY_DIFFER and isinstance(value, float | int | str | None):
            traits[name] = value
    return traits


# --- callbacks ---


def own_callbacks(
    make: Callable[[Any], MaybeCallback] | None, models: Sequence[BaseAlgorithm]
) -> list[list[BaseCallback]]:
    """Return the callbacks of every model.

    :param make: Maps a model to its callback, or to several.
    :raises ValueError: for a callback instead of that function, or one for several models.
    """
    if make is None:
        return [[] for _ in models]
    advice = "give a function that makes one for a model, such as lambda model: MyCallback()."
    if isinstance(make, BaseCallback) or not callable(make):
        raise ValueError(f"callback={make!r}: one callback cannot serve several models, {advice}")
    own = [_as_list(make(model)) for model in models]
    if len({id(callback) for callbacks in own for callback in callbacks}) < sum(map(len, own)):
        raise ValueError(f"callback returned one object twice: one callback cannot serve several models, {advice}")
    return own


def _as_list(callback: Any) -> list[BaseCallback]:
    several = callback if isinstance(callback, list | tuple) else [] if callback is None else [callback]
    return [one if isinstance(one, BaseCallback) else ConvertCallback(one) for one in several]
