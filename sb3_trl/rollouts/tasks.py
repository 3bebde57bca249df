"""Which state of a rollout is of which task, and how the episodes of each task end."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import unwrap_vec_normalize

__all__ = ["Episodes", "InInfo", "InObservation", "Names", "TaskRecorder", "log_by_task", "task_source"]

#: Names of the tasks by their numbers; ``None`` for one that has not been met.
Names: TypeAlias = list[str | None]
#: Returns and successes of a task's last episodes.
Episodes: TypeAlias = dict[int, tuple[deque[float], deque[float]]]
#: Where names of tasks are looked for that observations tell.
_NAME = "task"


class InInfo(NamedTuple):
    """The task is ``info[key]``, whatever that is."""

    key: str


class InObservation(NamedTuple):
    """The task is the place of the one among zeros in a part of the observation, or a number."""

    key: str | None  # of a dictionary
    start: int  # of the part
    stop: int
    is_number: bool = False

    @property
    def n_tasks(self) -> int:
        """K."""
        return self.stop - self.start

    def part(self, observations: Any) -> NDArray[Any]:
        """Return a copy of the part of several observations, ``(n_envs, K)``, or their numbers, ``(n_envs,)``."""
        whole = observations if self.key is None else observations[self.key]
        return (whole if self.is_number else whole[:, self.start : self.stop]).copy()

    def numbers(self, parts: NDArray[Any]) -> NDArray[np.int64]:
        """Return the numbers of the tasks that parts, ``(..., K)``, tell.

        :raises ValueError: for a part that is not a one among zeros.
        """
        if self.is_number:
            return parts.astype(np.int64)
        is_one = parts == 1
        is_right = (is_one | (parts == 0)).all(-1) & (is_one.sum(-1) == 1)
        if not is_right.all():
            where = f"entries {self.start} to {self.stop - 1}" if self.key is None else f"{self.key!r}"
            raise ValueError(
                f"An observation has {parts[~is_right][0]} in {where}, where a task should be a one among zeros. Say "
                "where that is in what environments return, before VecNormalize: tasks=K for the last K entries, "
                "tasks=(first, last + 1), or tasks='key' for a key of info or of Dict observations."
            )
        return is_one.argmax(-1)


def task_source(tasks: Any, space: spaces.Space) -> InInfo | InObservation:
    """Return where tasks are told.

    :param tasks: A key of ``info`` or of ``Dict`` observations; K, for the last K entries of the observation; or where
        such entries begin and end.
    :param space: Of observations, as the environments return them.
    :raises ValueError: for anything else, and for entries that there are not.
    """
    if isinstance(tasks, str):
        part = space.spaces.get(tasks) if isinstance(space, spaces.Dict) else None
        return InInfo(tasks) if part is None else _in_dict(tasks, part)
    bounds = [tasks] if isinstance(tasks, int) else list(tasks) if isinstance(tasks, list | tuple) else []
    if len(bounds) not in (1, 2) or any(type(bound) is not int or bound < 0 for bound in bounds) or bounds[-1] < 1:
        raise ValueError(
            f"tasks={tasks!r}: give K for a task's number as a one among zeros in the last K entries of the "
            "observation, (first, last + 1) for entries elsewhere, or a key of info."
        )
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"tasks={tasks!r} are entries of a vector, but observations are {space}: give a key of info.")
    (size,) = space.shape
    start, stop = (size - bounds[0], size) if len(bounds) == 1 else bounds
    if not 0 <= start < stop <= size:
        raise ValueError(f"tasks={tasks!r} is outside the observation, which has {size} entries.")
    return InObservation(None, start, stop)


def _in_dict(key: str, space: spaces.Space) -> InObservation:
    if isinstance(space, spaces.Discrete):
        return InObservation(key, 0, int(space.n), is_number=True)
    if isinstance(space, spaces.Box | spaces.MultiBinary) and len(space.shape) == 1:
        return InObservation(key, 0, space.shape[0])
    raise ValueError(
        f"tasks={key!r} is {space} in observations: a task's number is told by a Discrete space, or by a one among "
        "zeros in a vector."
    )


class TaskRecorder(BaseCallback):
    """Leave the tasks' numbers of a rollout's steps in ``rollout_buffer.tasks``, ``(n_steps, n_envs)``.

    And log the mean return, and the share of successes, of each task's last episodes.

    :param source: Where tasks are told.
    :param names: Of the tasks, by number; those that are met first are added.
    :param episodes: Of the tasks, by number; they are added, too.
    :param window: How many episodes are averaged over.
    """

    def __init__(self, source: InInfo | InObservation, names: Names, episodes: Episodes, window: int) -> None:
        super().__init__()
        self.source = source
        self.names = names
        self.episodes = episodes
        self.window = window

    def _on_training_start(self) -> None:
        if self.model.num_timesteps == 0:
            self.episodes.clear()

    def _on_rollout_start(self) -> None:
        self._normalizer = unwrap_vec_normalize(self.training_env)
        self._rows: list[Any] = []
        self._labels: list[list[Any]] = []
        self._ends: list[tuple[int, int, dict[str, Any]]] = []
        if isinstance(self.source, InObservation):
            self._next = self._told(self.model._last_obs)
            self.source.numbers(self._next)  # which says at once what is wrong with them

    def _on_step(self) -> bool:
        infos, dones = self.locals["infos"], self.locals["dones"]
        if isinstance(self.source, InInfo):
            self._rows.append([self._number(info) for info in infos])
        else:
            self._rows.append(self._next)
            self._next = self._told(self.locals["new_obs"])
            if None in self.names:
                self._labels.append([info.get(_NAME) for info in infos])
        if any(dones.tolist()):
            step = len(self._rows) - 1
            self._ends += [(step, index, infos[index]) for index in dones.nonzero()[0].tolist()]
        return True

    def _on_rollout_end(self) -> None:
        rows, buffer = np.stack(self._rows), self.model.rollout_buffer  # type: ignore[attr-defined]
        buffer.tasks = rows if isinstance(self.source, InInfo) else self.source.numbers(rows)
        if self._labels:
            self._give_names(buffer.tasks)
        for step, index, info in self._ends:
            self._keep(int(buffer.tasks[step, index]), info)
        self._rows, self._labels, self._ends = [], [], []
        for number, (returns, successes) in self.episodes.items():
            for key, values in (("ep_rew_mean", returns), ("success_rate", successes)):
                if values:
                    log_by_task(self.logger, f"rollout/{key}", self.names, {number: float(np.mean(values))})

    def _told(self, observations: Any) -> NDArray[Any]:
        """Return what the observations of now tell, as they are before they are normalised."""
        assert isinstance(self.source, InObservation)
        return self.source.part(observations if self._normalizer is None else self._normalizer.old_obs)

    def _number(self, info: dict[str, Any]) -> int:
        """Return the number of the task that an environment names."""
        assert isinstance(self.source, InInfo)
        if self.source.key not in info:
            raise ValueError(
                f"tasks={self.source.key!r} is no key of info, which has {', '.join(map(repr, info)) or 'none'}: the "
                "environment must give it in every step; or say where the observation tells the task, tasks=K for "
                "a one among zeros in its last K entries."
            )
        name = str(info[self.source.key])
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def _give_names(self, numbers: NDArray[np.int64]) -> None:
        """Name tasks that have no name as info does, if it does, each in its own way."""
        for number in np.unique(numbers).tolist():
            if self.names[number] is None:
                step, index = np.argwhere(numbers == number)[0]
                label = self._labels[step][index]
                name = str(number if label is None else label)
                self.names[number] = f"{name} {number}" if name in self.names else name

    def _keep(self, number: int, info: dict[str, Any]) -> None:
        """Keep how an episode ended."""
        if number not in self.episodes:
            self.episodes[number] = (deque(maxlen=self.window), deque(maxlen=self.window))
        returns, successes = self.episodes[number]
        if "episode" in info:
            returns.append(info["episode"]["r"])
        if info.get("is_success") is not None:
            successes.append(info["is_success"])


def log_by_task(logger: Logger, key: str, names: Names, values: dict[int, float]) -> None:
    """Record a number for each of some tasks, behind whose names they are found.

    Not on the console, where many tasks would be a flood, and names that differ at their ends are cut off.

    :param logger: The logger.
    :param key: What the numbers are.
    :param names: Of all tasks.
    :param values: The numbers, by the numbers of their tasks.
    """
    for number, value in values.items():
        logger.record(f"{key}/{names[number]}", value, exclude=("stdout", "log"))
