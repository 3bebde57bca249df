"""Environments of the papers' experiments; importing this package registers them with Gymnasium.

``sb3_trl/ReacherSparse5-v0`` and ``sb3_trl/ReacherSparse5Balanced-v0``; the tasks of Meta-World, alone
(``sb3_trl/MetaWorldPickPlace-v0``) and together (``sb3_trl/MetaWorldMT10-v0``, ``sb3_trl/MetaWorldMT50-v0``); and tasks
that ask for memory or eyes: ``sb3_trl/CartPoleNoVel-v1``, ``sb3_trl/MiniGridMemoryS7-v0``,
``sb3_trl/POPGymAutoencodeEasy-v0``, ``sb3_trl/VizdoomMyWayHome-v0`` and their relatives. What one of them needs is
loaded when it is made.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

from sb3_trl.envs.actions import UnboundedActions
from sb3_trl.envs.observations import HiddenEntries

if TYPE_CHECKING:
    from sb3_trl.envs.doom import VizdoomEnv
    from sb3_trl.envs.grids import OneHotGrid
    from sb3_trl.envs.metaworld import MetaWorldEnv, MultiTaskEnv, metaworld_vec_env
    from sb3_trl.envs.reacher import ReacherSparse5Env

__all__ = [
    "HiddenEntries",
    "MetaWorldEnv",
    "MultiTaskEnv",
    "OneHotGrid",
    "ReacherSparse5Env",
    "UnboundedActions",
    "VizdoomEnv",
    "metaworld_vec_env",
    "number_of_tasks",
]

#: Modules that import more than Gymnasium, by what they define.
_LATER = {
    "MetaWorldEnv": "metaworld",
    "MultiTaskEnv": "metaworld",
    "OneHotGrid": "grids",
    "ReacherSparse5Env": "reacher",
    "VizdoomEnv": "doom",
    "metaworld_vec_env": "metaworld",
}

#: Keyword arguments of ``ReacherSparse5Env`` by id.
_REACHERS: dict[str, dict[str, Any]] = {"ReacherSparse5-v0": {}, "ReacherSparse5Balanced-v0": {"balanced": True}}

#: Positions of velocities in the observation, by Gymnasium's id.
_VELOCITIES = {
    "CartPole-v1": [1, 3],
    "LunarLander-v3": [2, 3, 5],
    "LunarLanderContinuous-v3": [2, 3, 5],
    "MountainCarContinuous-v0": [1],
    "Pendulum-v1": [2],
}

#: Maker in ``grids`` and its keyword arguments, by id.
_GRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"MiniGridDoorKey{n}x{n}-v0": ("door_key", {"size": n}) for n in (5, 6, 8, 16)},
    **{f"MiniGridMemoryS{n}-v0": ("memory", {"size": n}) for n in (7, 9, 11, 13)},
    **{f"MiniGridMemoryS{n}Random-v0": ("memory", {"size": n, "random_length": True}) for n in (13, 17)},
}

_CARD_GAMES = [
    f"{game}{level}" for game in ("Autoencode", "CountRecall", "RepeatPrevious") for level in ("Easy", "Medium", "Hard")
]

#: File of ViZDoom's scenarios by id.
_SCENARIOS = {
    "VizdoomBasic-v0": "basic",
    "VizdoomHealthGathering-v0": "health_gathering",
    "VizdoomHealthGatheringSupreme-v0": "health_gathering_supreme",
    "VizdoomMyWayHome-v0": "my_way_home",
    "VizdoomTakeCover-v0": "take_cover",
}

#: Meta-World's tasks, in the order of MT50.
_METAWORLD = """
    assembly basketball bin-picking box-close button-press-topdown button-press-topdown-wall button-press
    button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open
    door-unlock hand-insert drawer-close drawer-open faucet-open faucet-close hammer handle-press-side
    handle-press handle-pull-side handle-pull lever-pull pick-place-wall pick-out-of-hole pick-place plate-slide
    plate-slide-side plate-slide-back plate-slide-back-side peg-insert-side peg-unplug-side soccer stick-push
    stick-pull push push-wall push-back reach reach-wall shelf-place sweep-into sweep window-open window-close
""".split()  # noqa: SIM905  a list of so many would be as many lines
_MULTI_TASK = "sb3_trl.envs.metaworld:MultiTaskEnv"


def _register(name: str, entry_point: Any, **specification: Any) -> None:
    env_id = f"sb3_trl/{name}"
    if env_id not in registry:
        register(env_id, entry_point=entry_point, **specification)


for _name, _kwargs in _REACHERS.items():
    _register(_name, "sb3_trl.envs.reacher:ReacherSparse5Env", kwargs=_kwargs, max_episode_steps=200)
for _name, _entries in _VELOCITIES.items():
    _of = registry[_name]
    _register(
        _name.replace("-", "NoVel-"),
        _of.entry_point,
        kwargs=_of.kwargs,
        max_episode_steps=_of.max_episode_steps,
        reward_threshold=_of.reward_threshold,
        additional_wrappers=(HiddenEntries.wrapper_spec(indices=_entries),),
    )
for _name, (_maker, _kwargs) in _GRIDS.items():
    _register(_name, f"sb3_trl.envs.grids:{_maker}", kwargs=_kwargs)
for _name in _CARD_GAMES:
    _register(f"POPGym{_name}-v0", "sb3_trl.envs.cards:card_game", kwargs={"game": _name})
for _name, _scenario in _SCENARIOS.items():
    _register(_name, "sb3_trl.envs.doom:VizdoomEnv", kwargs={"scenario": _scenario})
for _name in _METAWORLD:
    _id = "".join(word.capitalize() for word in _name.split("-"))
    _register(
        f"MetaWorld{_id}-v0", "sb3_trl.envs.metaworld:MetaWorldEnv", kwargs={"task": _name}, max_episode_steps=500
    )
for _name in ("MT10", "MT50"):
    _register(f"MetaWorld{_name}-v0", _MULTI_TASK, kwargs={"tasks": _name}, max_episode_steps=500)


def number_of_tasks(env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> int:
    """Return how many tasks there are of which each environment of an id is one; 1 where it is all the same task.

    :param env_id: The id.
    :param env_kwargs: Arguments of ``gymnasium.make``.
    """
    spec = registry.get(env_id)
    if spec is None or spec.entry_point != _MULTI_TASK:
        return 1
    arguments = {**spec.kwargs, **(env_kwargs or {})}
    if arguments.get("task") is not None:
        return 1
    return len(import_module("sb3_trl.envs.metaworld").task_names(arguments["tasks"]))


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'sb3_trl.envs' has no attribute {name!r}")
    return getattr(import_module(f"sb3_trl.envs.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return __all__
