"""One policy for many tasks: what an algorithm knows of them, and logs of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_trl.algorithms.arguments import check_choices
from sb3_trl.algorithms.base import TrustRegionAlgorithm
from sb3_trl.algorithms.collecting import first
from sb3_trl.algorithms.losses import normalize_by_task
from sb3_trl.rollouts.rollout import Rollout
from sb3_trl.rollouts.tasks import Episodes, InInfo, InObservation, Names, TaskRecorder, log_by_task, task_source
from sb3_trl.table import table

__all__ = ["ManyTasks"]


class ManyTasks(TrustRegionAlgorithm):
    """Tells the tasks of a rollout's states apart, where the argument ``tasks`` says how, and logs of each."""

    tasks: str | int | tuple[int, int] | None = None
    normalize_advantage: bool | Literal["task"]
    #: Of the tasks by number, and how their last episodes ended; plain objects, as files keep them.
    _task_names: Names
    _task_episodes: Episodes

    @property
    def n_tasks(self) -> int | None:
        """How many tasks there are, those that ``info`` has named so far; ``None`` where nothing tells them apart."""
        return None if self.tasks is None else max(len(self._task_names), 1)

    def _rollout(self) -> Rollout:
        rollout = super()._rollout()
        if self.tasks is None:
            return rollout
        buffer: Any = self.rollout_buffer
        tasks = buffer.to_torch(buffer.swap_and_flatten(buffer.tasks).flatten())
        advantages = rollout.advantages
        if self.normalize_advantage == "task":
            advantages = normalize_by_task(advantages, tasks)
        return rollout._replace(advantages=advantages, tasks=tasks)

    # --- the log ---

    def _log_by_task(self, key: str, values: th.Tensor) -> None:
        """Log a number for each task that has been met.

        :param key: What it is.
        :param values: By the tasks' numbers.
        """
        if self.tasks is not None:
            numbers = dict(zip(range(len(self._task_names)), values.tolist(), strict=False))
            met = {number: value for number, value in numbers.items() if self._task_names[number] is not None}
            log_by_task(self.logger, key, self._task_names, met)

    def _log_measured(
        self, prefix: str, measure: Callable[..., dict[str, float]], data: tuple[Any, ...], tasks: th.Tensor | None
    ) -> None:
        """Log what is measured of all states, and of those of each task that is in the rollout.

        :param prefix: Of the keys.
        :param measure: Maps data of some states to numbers.
        :param data: Of all states.
        :param tasks: Of the states; ``None`` where nothing tells them apart.
        """
        self._log(prefix, measure(*data))
        if tasks is None:
            return
        whole = table(data)
        for number in tasks.unique().tolist():
            own = whole.part(whole.at((tasks == number).nonzero()[:, 0]).rows)
            for key, value in measure(*own).items():
                log_by_task(self.logger, f"{prefix}/{key}", self._task_names, {number: value})

    # --- set-up ---

    def _setup_model(self) -> None:
        check_choices(self, {"normalize_advantage": (True, False, "task")})
        if self.tasks is None and self.normalize_advantage == "task":
            raise ValueError("normalize_advantage='task' needs tasks, which says how they are told apart.")
        source, names = self._task_source(), getattr(self, "_task_names", None)  # which were loaded, if they are there
        n = source.n_tasks if isinstance(source, InObservation) else 0
        if names is None or (n > 0 and len(names) != n) or (n == 0 and None in names):
            self._task_names, self._task_episodes = [None] * n, {}
        super()._setup_model()

    def _task_source(self) -> InInfo | InObservation | None:
        if self.tasks is None:
            return None
        normalization = self.get_vec_normalize_env()
        space = self.observation_space if normalization is None else normalization.observation_space
        return task_source(self.tasks, space)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        source = self._task_source()
        if source is not None:
            recorder = TaskRecorder(source, self._task_names, self._task_episodes, self._stats_window_size)
            callback = first(recorder, callback)
        return super()._init_callback(callback, progress_bar)
