"""sb3-contrib's TRPO (Schulman et al., 2015) with this package's rollouts: the same learning, sooner."""

from __future__ import annotations

from typing import ClassVar

from sb3_contrib import TRPO

from sb3_trl.algorithms.collecting import LeanRollouts

__all__ = ["LeanTRPO"]


class LeanTRPO(LeanRollouts, TRPO):
    """sb3-contrib's ``TRPO``, with its arguments and its updates, that spends less time on every environment step.

    For baselines. Given the same noise, its rollouts are those of SB3, number for number; the noise is drawn in
    another order, so a seed is another run. An observation or reward that is not finite is an error that names its
    environment, not a policy of NaN.
    """

    name: ClassVar[str] = "LeanTRPO"
