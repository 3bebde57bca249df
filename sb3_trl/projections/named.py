"""Projections by name, as ``TRPL(projection="kl")`` has them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sb3_trl.projections.frobenius import FrobeniusProjection
from sb3_trl.projections.joint_kl import JointKLProjection
from sb3_trl.projections.kl import KLProjection
from sb3_trl.projections.projection import Projection
from sb3_trl.projections.wasserstein import WassersteinProjection

__all__ = ["PROJECTIONS", "make_projection"]


#: Projections by name.
PROJECTIONS: dict[str, Callable[[], Projection]] = {
    "kl": KLProjection,
    "w2": WassersteinProjection,
    "w2_commuting": partial(WassersteinProjection, commuting=True),
    "frobenius": FrobeniusProjection,
    "joint_kl": JointKLProjection,
}


def make_projection(projection: str | Projection | None) -> Projection | None:
    """Return a projection by its name; a ``Projection`` or ``None`` as it is.

    :raises ValueError: for an unknown name.
    """
    if projection is None or isinstance(projection, Projection):
        return projection
    if projection not in PROJECTIONS:
        names = ", ".join(map(repr, PROJECTIONS))
        raise ValueError(f"projection={projection!r} is unknown: choose one of {names}, None, or pass a Projection.")
    return PROJECTIONS[projection]()
