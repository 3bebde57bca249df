"""The metadata of an exported policy: what the file is, takes, gives, and has inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from sb3_trl.deployment.actions import GaussianHead
from sb3_trl.deployment.deployed import DeployedPolicy
from sb3_trl.deployment.normalization import Statistics, layers
from sb3_trl.version import __version__

__all__ = ["KEY", "describe"]

#: Under which name a file has its metadata, as JSON.
KEY = "sb3_trl"
#: Wrappers that change neither observations nor actions.
_TRANSPARENT = (
    "Monitor",
    "OrderEnforcing",
    "PassiveEnvChecker",
    "PatchedTimeLimit",
    "RecordEpisodeStatistics",
    "RecordVideo",
    "TimeLimit",
)


def describe(
    model: Any, policy: Any, deployed: DeployedPolicy, statistics: Mapping[str | None, Statistics], env: VecEnv | None
) -> dict[str, Any]:
    """Return the metadata, of types that JSON has.

    :param model: The algorithm; the policy itself where it is exported alone.
    :param policy: The policy.
    :param deployed: What is exported.
    :param statistics: How observations are normalised.
    :param env: The model's environments, if it has any.
    """
    return {
        "algorithm": None if model is policy else type(model).__name__,
        "policy": type(policy).__name__,
        "timesteps": getattr(model, "num_timesteps", None),
        "inputs": [port.described() for port in deployed.inputs],
        "outputs": [port.described() for port in deployed.outputs],
        "observation_space": _space(policy.observation_space),
        "action_space": _space(policy.action_space),
        "inside": {
            "normalization": {key or "observation": {"clip": s.clip} for key, s in statistics.items()},
            "images_divided_by_255": [part.port.name for part in _parts(deployed) if part.divisor is not None],
            "one_hot": [part.port.name for part in _parts(deployed) if len(part.one_hot)],
            "action": _action(deployed),
        },
        "outside": {"frame_stack": _frames(env), "wrappers": list(_wrappers(env))},
        "noise": deployed.head.noise if any(port.name == "noise" for port in deployed.inputs) else None,
        "versions": {
            "sb3_trl": __version__,
            "stable_baselines3": stable_baselines3.__version__,
            "torch": th.__version__,
        },
    }


def _parts(deployed: DeployedPolicy) -> Any:
    return deployed.observations.parts


def _action(deployed: DeployedPolicy) -> str:
    head = deployed.head
    if not isinstance(head, GaussianHead):
        return "likeliest"
    return (
        "tanh, scaled to the space" if head.is_squashed else "clipped to the space" if head.is_clipped else "as it is"
    )


def _space(space: spaces.Space) -> dict[str, Any]:
    """Return a space as JSON has it; bounds are a number where all are equal, ``null`` where there is none."""
    known: dict[str, Any] = {"type": type(space).__name__}
    if isinstance(space, spaces.Dict):
        return known | {"spaces": {key: _space(part) for key, part in space.spaces.items()}}
    known |= {"shape": list(space.shape or ()), "dtype": np.dtype(space.dtype).name}
    if isinstance(space, spaces.Box):
        return known | {"low": _bound(space.low), "high": _bound(space.high)}
    if isinstance(space, spaces.MultiDiscrete):
        return known | {"nvec": space.nvec.tolist()}
    return known | ({"n": int(space.n)} if isinstance(space, spaces.Discrete) else {})


def _bound(numbers: np.ndarray) -> Any:
    if numbers.size and (numbers == numbers.flat[0]).all():
        return _number(numbers.flat[0].item())
    return [_number(x) for x in numbers.flatten().tolist()]


def _number(x: float) -> float | None:
    return x if np.isfinite(x) else None


def _frames(env: VecEnv | None) -> int:
    """Return how many frames environments stack that the caller of the file has to stack."""
    return next((layer.stacked_obs.n_stack for layer in layers(env) if isinstance(layer, VecFrameStack)), 1)


def _wrappers(env: VecEnv | None) -> Iterator[str]:
    """Yield the wrappers of a single environment, from the outermost inwards, which are not in the file."""
    envs = [layer.envs for layer in layers(env) if hasattr(layer, "envs")]
    single = envs[0][0] if envs else None
    while isinstance(single, gym.Wrapper):
        if type(single).__name__ not in _TRANSPARENT:
            yield type(single).__name__
        single = single.env
