"""Meta-World's arm in less time: the same physics, observations and rewards, to the bit.

Of a step of Meta-World's, physics is a fifth to a half: the rest looks for contacts one by one, turns a matrix into a
quaternion with every check there is, and computes rewards of single numbers with functions made for arrays. What stands
here takes the place of those.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, update_wrapper
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_trl.envs.extras import from_extra
from sb3_trl.envs.scalars import norm, quaternion, tolerance
from sb3_trl.envs.settling import Beginning, Settling

__all__ = ["swift"]

_reward_utils = from_extra("metaworld.utils.reward_utils", extra="metaworld")


@cache
def swift(task_class: type) -> type:
    """Return a class like one of Meta-World's tasks, whose steps take less time and are otherwise the same.

    It is a subclass. Functions of the task's that make quaternions or rewards, or measure lengths, are its own, with
    ``quaternion``, ``tolerance`` and ``norm`` in the place of what they are named after.

    :param task_class: A subclass of Meta-World's ``SawyerXYZEnv``.
    """
    functions: dict[str, FunctionType] = {}
    for cls in reversed(task_class.__mro__):
        if cls.__module__.startswith("metaworld."):
            functions |= {name: value for name, value in vars(cls).items() if isinstance(value, FunctionType)}
    slow = {name: function for name, function in functions.items() if _calls_slow_parts(function)}
    own = {name: _with_swift_parts(function) for name, function in slow.items() if name not in vars(_SwiftArm)}
    members = {**own, "__module__": task_class.__module__, "hands": Settling()}
    return type(task_class.__name__, (_SwiftArm, task_class), members)


class _Places:
    """Where bodies and sites are, by name: views of MuJoCo's own numbers, which take longer to make than to read.

    :param model: MuJoCo's.
    :param data: MuJoCo's.
    """

    def __init__(self, model: Any, data: Any) -> None:
        self.data = data
        self.bodies = {model.body(row).name: place for row, place in enumerate(data.xpos)}
        self.sites = {model.site(row).name: place for row, place in enumerate(data.site_xpos)}
        self.drawn_to, self.turned_to = data.mocap_pos[0], data.mocap_quat[0]


#: The hand's direction.
_DOWN = np.array((1.0, 0.0, 1.0, 0.0))


class _SwiftArm:
    """What stands before Meta-World's own class, and replaces methods that no task has of its own but `_reset_hand`."""

    #: Where the hand has come to rest in resets, by where they began.
    hands: Settling
    model: Any
    data: Any
    frame_skip: int
    hand_init_pos: NDArray[np.float64]
    action_scale: float
    mocap_low: NDArray[np.float64]
    mocap_high: NDArray[np.float64]
    _obs_obj_max_len: int
    _is_rehearsal = False
    _beginning: Beginning | None = None
    _known_places: _Places | None = None
    _prev_obs: NDArray[np.float64]
    _partially_observable: bool

    @property
    def _places(self) -> _Places:
        if self._known_places is None or self._known_places.data is not self.data:
            self._known_places = _Places(self.model, self.data)
        return self._known_places

    def get_body_com(self, body_name: str) -> NDArray[np.float64]:
        """Return where a body is now and will be."""
        place = self._places.bodies.get(body_name)
        return self.data.body(body_name).xpos if place is None else place

    @property
    def tcp_center(self) -> NDArray[np.float64]:
        """The middle between the gripper's fingers."""
        sites = self._places.sites
        return (sites["rightEndEffector"] + sites["leftEndEffector"]) / 2.0

    def _set_pos_site(self, name: str, pos: NDArray[np.float64]) -> None:
        self._places.sites[name][:] = pos[:3]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode. Meta-World begins it twice, the second time anew: what the first simulates is forgotten."""
        self._is_rehearsal = True
        return super().reset(seed, options)  # type: ignore[misc]

    def _reset_hand(self, steps: int = 50) -> None:
        """Wait until the hand is at its place; the steps but the last have been simulated if a reset began alike."""
        move: Callable[[int], None] = super()._reset_hand  # type: ignore[misc]
        if self._is_rehearsal:
            self._is_rehearsal = False
            return move(0)
        if self._beginning is None or self._beginning.model is not self.model:
            self._beginning = Beginning(self.model)
        beginning = self._beginning.of(self.data, self.frame_skip, self.hand_init_pos, steps)
        self.hands.settle(self.model, self.data, beginning, lambda: move(steps - 1))
        return move(1)

    def set_xyz_action(self, action: NDArray[np.float32]) -> None:
        """Move the point that draws the hand, as far as it may go."""
        places = self._places
        moved = places.drawn_to + np.minimum(np.maximum(action, -1), 1) * self.action_scale
        places.drawn_to[:] = np.minimum(np.maximum(moved, self.mocap_low), self.mocap_high)
        places.turned_to[:] = _DOWN

    def touching_object(self, object_geom_id: int) -> bool:
        """Return whether both fingers press on a thing: all contacts at once."""
        contacts, forces = self.data.contact, self.data.efc_force
        geoms = contacts.geom
        of_object = (geoms == object_geom_id).any(axis=1)
        if not of_object.any():
            return False

        def force_on(pad: str) -> float:
            of_both = of_object & (geoms == self.data.geom(pad).id).any(axis=1)
            return sum(forces[address] for address in contacts.efc_address[of_both])

        return bool(force_on("leftpad_geom") > 0 and force_on("rightpad_geom") > 0)

    def _get_obs(self) -> NDArray[np.float64]:
        """Return what is observed of this moment, of the one before, and the goal."""
        goal = self._get_pos_goal()  # type: ignore[attr-defined]
        now = self._get_curr_obs_combined_no_goal()
        observed = np.concatenate((now, self._prev_obs, np.zeros_like(goal) if self._partially_observable else goal))
        self._prev_obs = now
        return observed

    def _get_curr_obs_combined_no_goal(self) -> NDArray[np.float64]:
        """Return what is observed of this moment: the hand, how far the gripper is open, and the objects."""
        bodies = self._places.bodies
        positions, quaternions = self._get_pos_objects(), self._get_quat_objects()  # type: ignore[attr-defined]
        observed = np.zeros(4 + self._obs_obj_max_len)
        observed[:3] = bodies["hand"]
        observed[3] = min(max(norm(bodies["rightclaw"] - bodies["leftclaw"]) / 0.1, 0.0), 1.0)
        for k in range(len(positions) // 3):
            observed[4 + 7 * k : 7 + 7 * k] = positions[3 * k : 3 * k + 3]
            observed[7 + 7 * k : 11 + 7 * k] = quaternions[4 * k : 4 * k + 4]
        return observed


class _SwiftRotation:
    """SciPy's ``Rotation``, as far as Meta-World uses it."""

    def __init__(self, matrix: NDArray[np.float64]) -> None:
        self._matrix = matrix

    from_matrix = classmethod(lambda cls, matrix: cls(matrix))

    def as_quat(self) -> NDArray[np.float64]:
        return quaternion(self._matrix)


class _SwiftNumPy:
    """NumPy, but for the length of a vector."""

    linalg = SimpleNamespace(**{**vars(np.linalg), "norm": norm})

    def __getattr__(self, name: str) -> Any:
        value = getattr(np, name)
        setattr(self, name, value)  # asked for once
        return value


_PARTS = {
    "Rotation": _SwiftRotation,
    "reward_utils": SimpleNamespace(**{**vars(_reward_utils), "tolerance": tolerance}),
    "np": _SwiftNumPy(),
}


def _calls_slow_parts(function: FunctionType) -> bool:
    return not {"Rotation", "reward_utils", "norm"}.isdisjoint(function.__code__.co_names)


def _with_swift_parts(function: FunctionType) -> FunctionType:
    """Return the same function, for which the names of slow parts mean the swift ones."""
    names = {**function.__globals__, **_PARTS}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    update_wrapper(copy, function)
    return copy
