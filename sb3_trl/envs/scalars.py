"""Rotations, rewards and lengths of single numbers: what SciPy, Meta-World and NumPy make of them, sooner."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sb3_trl.envs.extras import from_extra

__all__ = ["norm", "quaternion", "tolerance"]

_reward_utils = from_extra("metaworld.utils.reward_utils", extra="metaworld")

#: How far products of two rows may be from the identity's entries: SciPy allows as much.
_ORTHOGONAL = 1e-12


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


def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """Return NumPy's ``linalg.norm``; of a vector of doubles, its length, it is computed here.

    :param x: The vector, or anything that NumPy takes.
    :param ord: As NumPy's, and so are the others.
    """
    is_length = (ord is None or ord == 2) and axis is None and not keepdims
    if is_length and type(x) is np.ndarray and x.ndim == 1 and x.dtype == np.float64 and x.flags.c_contiguous:
        return np.sqrt(x.dot(x))
    return np.linalg.norm(x, ord, axis, keepdims)


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
