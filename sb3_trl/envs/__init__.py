"""Environments of the papers' experiments; importing this package registers them with Gymnasium.

``sb3_trl/ReacherSparse5-v0`` and ``sb3_trl/ReacherSparse5Balanced-v0``; their simulator is loaded when one is made.
"""

from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

from sb3_trl.envs.actions import UnboundedActions

if TYPE_CHECKING:
    from sb3_trl.envs.reacher import ReacherSparse5Env

__all__ = ["ReacherSparse5Env", "UnboundedActions"]

#: Keyword arguments of ``ReacherSparse5Env`` by id.
_REACHERS: dict[str, dict[str, Any]] = {
    "sb3_trl/ReacherSparse5-v0": {},
    "sb3_trl/ReacherSparse5Balanced-v0": {"balanced": True},
}

for _id, _kwargs in _REACHERS.items():
    if _id not in registry:
        register(_id, entry_point="sb3_trl.envs.reacher:ReacherSparse5Env", kwargs=_kwargs, max_episode_steps=200)


def __getattr__(name: str) -> Any:
    if name != "ReacherSparse5Env":
        raise AttributeError(f"module 'sb3_trl.envs' has no attribute {name!r}")
    from sb3_trl.envs.reacher import ReacherSparse5Env

    return ReacherSparse5Env


def __dir__() -> list[str]:
    return __all__
