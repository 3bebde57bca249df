"""Rows for each task of a policy that learns many: one for every evaluation and task."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["BY_TASK", "LABELS", "TASK_COLUMNS", "mean", "task_of", "task_rows"]

#: File in a run's folder, and in the study's.
BY_TASK = "by_task.csv"
#: Columns that say what a row is of.
LABELS = ("study", "algorithm", "variant", "task", "seed", "step")
#: Columns of ``by_task.csv``.
TASK_COLUMNS = (
    *LABELS,
    "subtask",
    "eval_return",
    "eval_success",
    "train_return",
    "train_success",
    "kl_mean",
    "kl_max",
    "bounded_kl_max",
    "entropy",
    "violation_fraction",
    "beta",
    "fixup_steps",
)

#: Columns that are what was logged last, those that are means over updates, and those that are the largest of them;
#: and the keys, to which the log adds the task's name.
_LATEST = {"train_return": "rollout/ep_rew_mean", "train_success": "rollout/success_rate"}
_MEANS = {
    "kl_mean": "trust_region/kl_mean",
    "entropy": "trust_region/entropy",
    "violation_fraction": "trust_region/violation_fraction",
    "fixup_steps": "fixpo/fixup_steps",
}
_LARGEST = {"kl_max": "trust_region/kl_max", "bounded_kl_max": "fixpo/kl_max"}
_BETA = "fixpo/beta"
_KEYS = (_BETA, *_LATEST.values(), *_MEANS.values(), *_LARGEST.values())


def task_of(key: str) -> str | None:
    """Return the name of the task that a key of the log is of, ``None`` for one that counts for no column here."""
    return next((key.removeprefix(f"{known}/") for known in _KEYS if key.startswith(f"{known}/")), None)


def task_rows(
    labels: Mapping[str, Any],
    evaluated: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    updates: Sequence[Mapping[str, float]],
) -> list[dict[str, Any]]:
    """Return a row for each task. One β of all tasks is that of each.

    :param labels: What all rows have.
    :param evaluated: Returns and successes of the evaluation's episodes, by task.
    :param updates: What each update since the evaluation before logged, by key.
    """
    logged = (task_of(key) for update in updates for key in update)
    names = dict.fromkeys([*evaluated, *(name for name in logged if name is not None)])

    def values(key: str, name: str) -> list[float]:
        return [update[f"{key}/{name}"] for update in updates if f"{key}/{name}" in update]

    beta_of_all = [update[_BETA] for update in updates if _BETA in update]

    def row(name: str) -> dict[str, Any]:
        returns, successes = evaluated.get(name, ((), ()))
        return {
            **labels,
            "subtask": name,
            "eval_return": mean(returns),
            "eval_success": mean(successes),
            **{column: next(reversed(values(key, name)), None) for column, key in _LATEST.items()},
            **{column: mean(values(key, name)) for column, key in _MEANS.items()},
            "beta": mean(values(_BETA, name) or beta_of_all),
            **{column: max(values(key, name), default=None) for column, key in _LARGEST.items()},
        }

    return [row(name) for name in names]


def mean(values: Collection[float] | None) -> Any:
    """Return the mean, ``None`` of nothing."""
    return float(np.mean(list(values))) if values else None
