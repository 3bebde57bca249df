"""Meta-World's arm in less time: the same physics, observations and rewards, to the bit.

Of a step of Meta-World's, physics is a fifth to a half: the rest looks for contacts one by one, turns a matrix into a
quaternion with every check there is, and computes rewards of single numbers with functions made for arrays. What stands
here takes the place of those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, update_wrapper
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sb3_trl.envs.extras import from_extra
from sb3_trl.envs.settling import Beginning, Settling

__all__ = ["quaternion", "swift", "tolerance"]

_reward_utils = from_extra("metaworld.utils.reward_utils", extra="metaworld")

#: How far products of two rows may be from the identity's entries: SciPy allows as much.
_ORTHOGONAL = 1e-12


@cache
def swift(task_class: type) -> type:
    """Return a class like one of Meta-World's tasks, whose steps take less time and are otherwise the same.

    It is a subclass. Functions of the task's that make quaternions or rewards are its own, with ``quaternion`` and
    ``tolerance`` in the place of what they are named after.

    :param task_class: A subclass of Meta-World's ``SawyerXYZEnv``.
    """
    functions: dict[str, FunctionType] = {}
    for cls in reversed(task_class.__mro__):
        if cls.__module__.startswith("metaworld."):
            functions |= {name: value for name, value in vars(cls).items() if isinstance(value, FunctionType)}
    own = {name: _with_swift_parts(function) for name, function in functions.items() if _calls_slow_parts(function)}
    members = {**own, "__module__": task_class.__module__, "hands": Settling()}
    return type(task_class.__name__, (_SwiftArm, task_class), members)


def quaternion(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation's quaternion, scalar last, as SciPy's ``Rotation.from_matrix(matrix).as_quat()`` does.

    A matrix that is not quite orthogonal, or turns right-handed axes into left-handed ones, is left to SciPy.

    :param matrix: Shape (3, 3).
    :return: Shape (4,), of length 1.
    """
    x, y, z = matrix.tolist()
    if not _is_rotation(x, y, z):
        return Rotation.from_matrix(matrix).as_quat()
    trace = x[0] + y[1] + z[2]
    largest = max(x[0], y[1], z[2], trace)
    if largest == x[0]:
        parts = (1 - trace + 2 * x[0], y[0] + x[1], z[0] + x[2], z[1] - y[2])
    elif largest == y[1]:
        parts = (y[0] + x[1], 1 - trace + 2 * y[1], z[1] + y[2], x[2] - z[0])
    elif largest == z[2]:
        parts = (z[0] + x[2], z[1] + y[2], 1 - trace + 2 * z[2], y[0] - x[1])
    else:
        parts = (z[1] - y[2], x[2] - z[0], y[0] - x[1], 1 + trace)
    a, b, c, d = parts
    length = math.sqrt(a * a + b * b + c * c + d * d)
    return np.array((a / length, b / length, c / length, d / length))


def tolerance(
    x: Any,
    bounds: tuple[float, float] = (0.0, 0.0),
    margin: float = 0.0,
    sigmoid: str = "gaussian",
    value_at_margin: float = 0.1,
) -> Any:
    """Return Meta-World's ``reward_utils.tolerance``: 1 within bounds, falling to ``value_at_margin`` at a margin.

    Of a number, with the long-tailed sigmoid that most rewards have, it is computed here; the rest is left to
    Meta-World, and so are errors.

    :param x: The number, or an array.
    :param bounds: Lower and upper.
    :param margin: Width of the slope beyond the bounds, at least 0.
    :param sigmoid: The slope's form.
    :param value_at_margin: Between 0 and 1.
    """
    lower, upper = bounds
    if sigmoid != "long_tail" or not (isinstance(x, float) and lower <= upper and margin > 0 < value_at_margin < 1):
        return _reward_utils.tolerance(x, bounds, margin, sigmoid, value_at_margin)
    if lower <= x <= upper:
        return 1.0
    distance = (float(lower - x) if x < lower else float(x - upper)) / float(margin)
    return 1 / ((distance * math.sqrt(1 / value_at_margin - 1)) ** 2 + 1)


class _SwiftArm:
    """What stands before Meta-World's own class."""

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
        moved = self.data.mocap_pos[0] + np.minimum(np.maximum(action, -1), 1) * self.action_scale
        self.data.mocap_pos[0] = np.minimum(np.maximum(moved, self.mocap_low), self.mocap_high)
        self.data.mocap_quat[0] = (1.0, 0.0, 1.0, 0.0)

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

    def _get_curr_obs_combined_no_goal(self) -> NDArray[np.float64]:
        """Return what is observed of this moment: the hand, how far the gripper is open, and the objects."""
        data = self.data
        apart = data.body("rightclaw").xpos - data.body("leftclaw").xpos
        positions, quaternions = self._get_pos_objects(), self._get_quat_objects()  # type: ignore[attr-defined]
        n_objects = len(positions) // 3
        observed = np.zeros(4 + self._obs_obj_max_len)
        observed[:3] = data.body("hand").xpos
        observed[3] = min(max(math.sqrt(apart.dot(apart)) / 0.1, 0.0), 1.0)
        objects = observed[4 : 4 + 7 * n_objects].reshape(n_objects, 7)
        objects[:, :3] = np.reshape(positions, (n_objects, 3))
        objects[:, 3:] = np.reshape(quaternions, (n_objects, 4))
        return observed


class _SwiftRotation:
    """SciPy's ``Rotation``, as far as Meta-World uses it."""

    def __init__(self, matrix: NDArray[np.float64]) -> None:
        self._matrix = matrix

    from_matrix = classmethod(lambda cls, matrix: cls(matrix))

    def as_quat(self) -> NDArray[np.float64]:
        return quaternion(self._matrix)


_PARTS = {
    "Rotation": _SwiftRotation,
    "reward_utils": SimpleNamespace(**{**vars(_reward_utils), "tolerance": tolerance}),
}


def _calls_slow_parts(function: FunctionType) -> bool:
    return not _PARTS.keys().isdisjoint(function.__code__.co_names)


def _with_swift_parts(function: FunctionType) -> FunctionType:
    """Return the same function, for which the names of slow parts mean the swift ones."""
    names = {**function.__globals__, **_PARTS}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    update_wrapper(copy, function)
    return copy


def _is_rotation(x: list[float], y: list[float], z: list[float]) -> bool:
    """Return whether rows are orthogonal, of length 1, and right-handed."""
    return (
        abs(x[0] * y[0] + x[1] * y[1] + x[2] * y[2]) <= _ORTHOGONAL
        and abs(x[0] * z[0] + x[1] * z[1] + x[2] * z[2]) <= _ORTHOGONAL
        and abs(y[0] * z[0] + y[1] * z[1] + y[2] * z[2]) <= _ORTHOGONAL
        and abs(x[0] * x[0] + x[1] * x[1] + x[2] * x[2] - 1) <= _ORTHOGONAL
        and abs(y[0] * y[0] + y[1] * y[1] + y[2] * y[2] - 1) <= _ORTHOGONAL
        and abs(z[0] * z[0] + z[1] * z[1] + z[2] * z[2] - 1) <= _ORTHOGONAL
        and x[0] * (y[1] * z[2] - y[2] * z[1]) - x[1] * (y[0] * z[2] - y[2] * z[0]) + x[2] * (y[0] * z[1] - y[1] * z[0])
        > 0
    )
