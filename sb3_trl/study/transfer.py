"""From one run's model to the next: parameters and statistics of normalisation, and whether they fit."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_trl.study.jobs import Start

__all__ = ["begin_from", "layout", "misfit", "normalizations", "set_statistics", "statistics"]


def begin_from(model: BaseAlgorithm, start: Start) -> None:
    """Give a new model another's policy, value function included, and its environments the other's statistics.

    Everything else stays new: optimisers, β, schedules, the number of steps.
    """
    parameters: Any
    _, parameters, _ = load_from_zip_file(io.BytesIO(start.model), device=model.device, load_data=False)
    model.policy.load_state_dict(parameters["policy"])
    normalization = model.get_vec_normalize_env()
    if normalization is not None and start.normalization is not None:
        set_statistics(normalization, statistics(pickle.loads(start.normalization)))


def normalizations(env: VecEnv | None) -> Iterator[VecNormalize]:
    """Yield the ``VecNormalize`` around environments, the outermost first."""
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            yield env
        env = env.venv


def statistics(env: VecNormalize) -> tuple[Any, Any]:
    """Return the statistics of observations, ``None`` where they are not normalised, and of returns."""
    return vars(env).get("obs_rms"), env.ret_rms


def set_statistics(env: VecNormalize, values: tuple[Any, Any]) -> None:
    """Set what ``statistics`` returned of another."""
    observations, env.ret_rms = values
    if observations is not None:
        env.obs_rms = observations


# --- what fits ---


def layout(model: BaseAlgorithm) -> dict[str, str]:
    """Return what a model must have in common with another that starts from it, as texts by name."""
    space = model.observation_space
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    observed = {f"observation {key}".strip(): _shape(part.shape or ()) for key, part in parts.items()}
    parameters = {f"parameter {name}": _shape(value.shape) for name, value in model.policy.state_dict().items()}
    return {"normalisation": _normalised(model)} | observed | parameters


def misfit(own: Mapping[str, str], other: Mapping[str, str]) -> str | None:
    """Return the first difference of two layouts, ``None`` if there is none."""
    for name in [*own, *other]:
        if own.get(name) != other.get(name):
            return f"{name} is {own.get(name, 'missing')} in the one and {other.get(name, 'missing')} in the other"
    return None


def _normalised(model: BaseAlgorithm) -> str:
    env = model.get_vec_normalize_env()
    if env is None:
        return "off"
    return f"{'on' if env.norm_obs else 'off'} for observations, {'on' if env.norm_reward else 'off'} for rewards"


def _shape(sizes: tuple[int, ...]) -> str:
    return " × ".join(map(str, sizes)) or "a number"
