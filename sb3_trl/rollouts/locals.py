"""What callbacks find in ``locals`` while a rollout is collected, computed where they ask for it."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_trl.rollouts.policy_watch import callbacks_in
from sb3_trl.rollouts.values import Appraisal

__all__ = ["RolloutLocals", "give_locals"]


def give_locals(callback: BaseCallback, appraisal: Appraisal) -> None:
    """Give a callback, and those that it calls, locals that know of the step's values and log-probabilities."""
    given: dict[int, RolloutLocals] = {}  # SB3 gives all of them the same object
    for one in callbacks_in(callback):
        known = one.locals
        if id(known) not in given:
            # Without those of the last rollout.
            now = {key: value for key, value in known.items() if key not in appraisal.on_demand}
            given[id(known)] = RolloutLocals(now, appraisal)
        one.locals = given[id(known)]


class RolloutLocals(dict):
    """A callback's ``locals`` in the middle of a rollout.

    ``obs_tensor``, ``values`` and ``log_probs`` of the step, which are not needed before the rollout is over, are
    computed with the policy as it is whenever they are looked up.

    :param known: What is known.
    :param appraisal: Computes what is not.
    """

    def __init__(self, known: dict[str, Any], appraisal: Appraisal) -> None:
        super().__init__(known)
        self._appraisal = appraisal

    def __missing__(self, key: str) -> Any:
        if key not in self._appraisal.on_demand or "actions" not in self:
            raise KeyError(key)
        return self._appraisal.local(key, self)

    def get(self, key: str, default: Any = None) -> Any:
        """Return what belongs to a key, ``default`` if there is nothing."""
        try:
            return self[key]
        except KeyError:
            return default

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (key in self._appraisal.on_demand and super().__contains__("actions"))
