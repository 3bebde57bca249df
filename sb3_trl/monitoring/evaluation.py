"""Evaluations of one policy for many tasks: what each task brings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from stable_baselines3.common.callbacks import EvalCallback

from sb3_trl.rollouts.tasks import log_by_task

if TYPE_CHECKING:
    _Evaluation = EvalCallback
else:
    _Evaluation = object

__all__ = ["MaskableTaskEvalCallback", "TaskEvalCallback"]

#: Where ``info`` names the task.
_NAME = "task"


class _ByTask(_Evaluation):
    """Keeps the returns and successes of each task of the latest evaluation, ``by_task``, and logs their means.

    The keys are ``eval/mean_reward/<task>`` and ``eval/success_rate/<task>``; the console does not show them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.by_task: dict[str, tuple[list[float], list[float]]] = {}

    def _on_step(self) -> bool:
        if self.eval_freq > 0 and self.n_calls % self.eval_freq == 0:
            self.by_task = {}
        return super()._on_step()

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """Keep what an episode has brought that ends now."""
        super()._log_success_callback(locals_, globals_)
        info = locals_["info"]
        if not locals_["done"] or _NAME not in info:
            return
        name = str(info[_NAME])
        returns, successes = self.by_task.setdefault(name, ([], []))
        returns.append(float(info["episode"]["r"] if "episode" in info else locals_["current_rewards"][locals_["i"]]))
        self._log("eval/mean_reward", name, returns)
        if info.get("is_success") is not None:
            successes.append(float(info["is_success"]))
            self._log("eval/success_rate", name, successes)

    def _log(self, key: str, name: str, values: list[float]) -> None:
        log_by_task(self.logger, key, [name], {0: float(np.mean(values))})


class TaskEvalCallback(_ByTask, EvalCallback):
    """SB3's ``EvalCallback``, which tells tasks apart that ``info["task"]`` names."""


class MaskableTaskEvalCallback(_ByTask, MaskableEvalCallback):
    """sb3-contrib's ``MaskableEvalCallback``, which tells tasks apart that ``info["task"]`` names."""
