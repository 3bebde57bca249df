"""Whether an exported policy acts as the model does: looked at once, before the file is handed over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_trl.deployment.deployed import DeployedPolicy
from sb3_trl.deployment.exported import ExportedPolicy
from sb3_trl.deployment.normalization import Statistics
from sb3_trl.deployment.observations import Observation

__all__ = ["check_actions"]

#: Largest difference of actions, in units of the action or of 1, whichever is more.
_TOLERANCE = 1e-4
#: How many discrete actions may differ: two can be as likely as each other but for rounding.
_TIES = 0.1


def check_actions(
    policy: Any, deployed: DeployedPolicy, exported: ExportedPolicy, statistics: Mapping[str | None, Statistics]
) -> None:
    """Compare the file's deterministic actions with the policy's ``predict``, at random observations.

    :raises ValueError: if they differ.
    """
    was_training = policy.training
    try:
        for batch in (1, 16):
            _compare(policy, deployed, exported, statistics, batch)
    finally:
        policy.set_training_mode(was_training)


def _compare(
    policy: Any,
    deployed: DeployedPolicy,
    exported: ExportedPolicy,
    statistics: Mapping[str | None, Statistics],
    batch: int,
) -> None:
    inputs, observations = _draw(deployed, statistics, batch)
    start = {"episode_start": np.ones(batch, bool)} if deployed.core.states else {}
    expected, _ = policy.predict(observations, deterministic=True, **start)
    try:
        actions = exported.run(inputs)["action"]
    except Exception as error:  # of torch or of onnxruntime, which have no kind of their own for this
        raise _Different(f"{batch} random observations cannot be its input.") from error
    if actions.shape != expected.shape:
        raise _Different(f"actions of {batch} random observations have shape {actions.shape}, not {expected.shape}.")
    if isinstance(policy.action_space, spaces.Box):
        difference = float((np.abs(actions - expected) / np.maximum(np.abs(expected), 1)).max())
        is_same = difference <= _TOLERANCE
    else:
        difference = float((actions != expected).mean())
        is_same = difference <= _TIES
    if not is_same:
        raise _Different(f"the actions of {batch} random observations differ by {difference:.2g}.")


class _Different(ValueError):
    def __init__(self, how: str) -> None:
        super().__init__(
            f"The exported policy does not act as predict does: {how} Some layer of the policy cannot be exported as "
            "it is: one of your own?"
        )


def _draw(
    deployed: DeployedPolicy, statistics: Mapping[str | None, Statistics], batch: int
) -> tuple[dict[str, np.ndarray], Any]:
    """Return random inputs of the file, and the same observations as the policy takes them."""
    rng = np.random.default_rng(0)
    inputs = {port.name: tensor.numpy() for port, tensor in zip(deployed.inputs, deployed.example(batch), strict=True)}
    by_key: dict[str | None, np.ndarray] = {}
    parts: Any = deployed.observations.parts
    for key, part in zip(deployed.observations.keys, parts, strict=True):
        raw = _random(part, statistics.get(key), rng, batch)
        by_key[key] = statistics[key].normalized(raw) if key in statistics else raw
        inputs[part.port.name] = np.moveaxis(raw, 1, -1) if part.channels_last else raw
    return inputs, by_key if deployed.observations.has_keys else by_key[None]


def _random(part: Observation, statistics: Statistics | None, rng: np.random.Generator, batch: int) -> np.ndarray:
    """Return random observations of one space in the policy's layout, before normalisation."""
    space, dtype = part.space, part.port.dtype
    shape = (batch, *(space.shape or ()))
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return (rng.random(shape) * (space.n if isinstance(space, spaces.Discrete) else space.nvec)).astype(dtype)
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype != "float32":
        return rng.integers(0, 256 if dtype == "uint8" else 2, shape).astype(dtype)
    noise = rng.standard_normal(shape)
    if statistics is not None:
        return (statistics.mean + statistics.std * noise).astype(np.float32)
    assert isinstance(space, spaces.Box)
    return np.clip(2 * noise, space.low, space.high).astype(np.float32)
