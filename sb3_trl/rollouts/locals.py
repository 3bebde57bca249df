"""What callbacks find in ``locals`` while a rollout is collected, computed where they ask for it."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trl.policies.forward import DistributionAndValues
from sb3_trl.policies.masks import Masked
from sb3_trl.rollouts.policy_watch import callbacks_in

__all__ = ["RolloutLocals", "give_locals"]

_ON_DEMAND = ("obs_tensor", "values", "log_probs")


def give_locals(callback: BaseCallback, algorithm: OnPolicyAlgorithm) -> None:
    """Give a callback, and those that it calls, locals that know of the step's values and log-probabilities."""
    given: dict[int, RolloutLocals] = {}  # SB3 gives all of them the same object
    for one in callbacks_in(callback):
        known = one.locals
        if id(known) not in given:
            now = {key: value for key, value in known.items() if key not in _ON_DEMAND}  # without the last rollout's
            given[id(known)] = RolloutLocals(now, algorithm)
        one.locals = given[id(known)]


class RolloutLocals(dict):
    """A callback's ``locals`` in the middle of a rollout.

    ``obs_tensor``, ``values`` and ``log_probs`` of the step, which are not needed before the rollout is over, are
    computed with the policy as it is whenever they are looked up.

    :param known: What is known.
    :param algorithm: The algorithm that collects the rollout.
    """

    def __init__(self, known: dict[str, Any], algorithm: OnPolicyAlgorithm) -> None:
        super().__init__(known)
        self._algorithm = algorithm

    def __missing__(self, key: str) -> Any:
        if key not in _ON_DEMAND or "actions" not in self:
            raise KeyError(key)
        policy = self._algorithm.policy
        observations: Any = obs_as_tensor(self._algorithm._last_obs, policy.device)  # type: ignore[arg-type]
        if key == "obs_tensor":
            return observations
        with th.no_grad():
            if "action_masks" in self:
                observations = Masked(observations, th.as_tensor(self["action_masks"], device=policy.device))
            distribution, values = DistributionAndValues(policy)(observations)
            if key == "values":
                return values
            return distribution.log_prob(th.as_tensor(self["actions"], device=policy.device))

    def get(self, key: str, default: Any = None) -> Any:
        """Return what belongs to a key, ``default`` if there is nothing."""
        try:
            return self[key]
        except KeyError:
            return default

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (key in _ON_DEMAND and super().__contains__("actions"))
