"""The check for observations and rewards that are not finite numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import unwrap_vec_normalize

__all__ = ["FiniteCheckCallback"]


class FiniteCheckCallback(BaseCallback):
    """Stop with a clear error at the first observation or reward that is not a finite number."""

    def _on_rollout_start(self) -> None:
        self._check("observation", self.model._last_obs, "on reset")

    def _on_step(self) -> bool:
        locals_ = self.locals
        if not _is_finite(locals_["new_obs"]):
            self._check("observation", locals_["new_obs"], self._when)
        if not _is_finite(locals_["rewards"]):
            self._check("reward", locals_["rewards"], self._when)
        if any(locals_["dones"].tolist()):
            self._check_bootstrap(self._when)
        return True

    @property
    def _when(self) -> str:
        return f"at step {self.locals['n_steps'] + 1} of the rollout"

    def _check(self, what: str, values: Any, when: str) -> None:
        if _broken(values) is None:
            return
        normalizer = unwrap_vec_normalize(self.training_env)
        if normalizer is not None:
            # One bad number is in the running statistics, and so in every environment's numbers: look behind.
            original = normalizer.old_obs if what == "observation" else normalizer.old_reward
            values = values if _broken(original) is None else original
        index, row = _broken(values)  # type: ignore[misc]
        self._raise(index, f"{what} {when}", row)

    def _check_bootstrap(self, when: str) -> None:
        """Check the last observation of an episode where its value is part of the return."""
        for index, info in enumerate(self.locals["infos"]):
            if self.locals["dones"][index] and info.get("TimeLimit.truncated", False):
                last = info["terminal_observation"]
                parts = last.items() if isinstance(last, dict) else [("", last)]
                found = _broken({key: np.asarray(part)[None] for key, part in parts})
                if found is not None:
                    self._raise(index, f"last observation of an episode {when}", found[1])

    def _raise(self, index: int, what: str, row: np.ndarray) -> None:
        raise ValueError(
            f"Environment {index} returned a non-finite {what} (timestep {self.num_timesteps}): {row}. Check the "
            "environment's dynamics and reward, for example with stable_baselines3.common.vec_env.VecCheckNan."
        )


def _is_finite(values: Any) -> bool:
    if isinstance(values, dict):
        return all(map(_is_finite, values.values()))
    if values.dtype.kind != "f":
        return True
    # The sum is quicker than a look at each, and not finite if one of them is not. Python adds few numbers faster.
    total = sum(values.ravel().tolist()) if values.size < 32 else np.add.reduce(values, axis=None)
    return math.isfinite(total) or bool(np.isfinite(values).all())


def _broken(values: Any) -> tuple[int, np.ndarray] | None:
    """Return the first environment with a non-finite number, and its numbers; ``None`` if there is none."""
    for array in values.values() if isinstance(values, dict) else [values]:
        if not _is_finite(array):
            index = int((~np.isfinite(array)).reshape(len(array), -1).any(axis=1).argmax())
            return index, array[index]
    return None
