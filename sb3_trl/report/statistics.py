"""Means, intervals and scores over seeds and tasks, as pure functions.

A table of results is a ``DataFrame`` with one row per evaluation and the columns ``variant``, ``task``, ``seed`` and
``step``, and one column for everything that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

__all__ = [
    "ALL_TASKS",
    "Estimate",
    "band",
    "evaluations_after",
    "final_evaluations",
    "interquartile_mean",
    "largest_drops",
    "mean_interval",
    "means_over_tasks",
    "normalize",
    "prediction_interval",
    "score_matrix",
]

RUN = ["variant", "task", "seed"]

#: What stands in the place of a task in means over all of them.
ALL_TASKS = "all tasks"


class Estimate(NamedTuple):
    """A number and its confidence interval; ``low`` and ``high`` are NaN where nothing is known of the spread."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2


def mean_interval(values: np.ndarray | pd.Series, confidence: float = 0.95) -> Estimate:
    """Return the mean of independent values and Student's interval: mean ± t · s / √n, with n − 1 degrees of freedom.

    One value has no interval.

    :param values: One value for each seed.
    :param confidence: How often the interval holds the mean.
    :raises ValueError: if there are no values.
    """
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise ValueError("There is no mean of no values.")
    mean = float(values.mean())
    if values.size == 1:
        return Estimate(mean, float("nan"), float("nan"))
    half = float(_quantile(values.size, confidence) * values.std(ddof=1) / np.sqrt(values.size))
    return Estimate(mean, mean - half, mean + half)


def prediction_interval(values: np.ndarray | pd.Series, confidence: float = 0.95) -> Estimate:
    """Return the mean of independent values, and where one more of them lands: mean ± t · s · √(1 + 1 / n).

    t is Student's quantile with n − 1 degrees of freedom; the values are taken to be normal. One value has no interval.

    :param values: One value for each seed.
    :param confidence: How often the interval holds the next value.
    :raises ValueError: if there are no values.
    """
    mean, n = mean_interval(values, confidence), len(values)
    half = mean.half_width * np.sqrt(n + 1)
    return Estimate(mean.value, mean.value - half, mean.value + half)


def band(table: pd.DataFrame, key: str, confidence: float = 0.95) -> pd.DataFrame:
    """Return the mean over seeds of a column at every step, with Student's interval.

    :param table: Results of one variant on one task; rows in which ``key`` is missing do not count.
    :param key: The column.
    :return: Columns ``mean``, ``low`` and ``high``, by step; the last two are NaN at steps that one seed reached.
    """
    groups = table.dropna(subset=[key]).groupby("step")[key]
    mean, count = groups.mean(), groups.count()
    half = _quantile(count.to_numpy(), confidence) * groups.std(ddof=1) / np.sqrt(count)
    return pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half})


def final_evaluations(table: pd.DataFrame, n: int, key: str = "eval_return") -> pd.DataFrame:
    """Return, for every run, the mean of its last n evaluations: columns ``variant``, ``task``, ``seed``, ``value``.

    :raises ValueError: if a run has fewer than n evaluations.
    """
    return _means(table.sort_values("step").dropna(subset=[key]).groupby(RUN, sort=False).tail(n), n, key)


def evaluations_after(table: pd.DataFrame, share: float, n: int, key: str = "eval_return") -> pd.DataFrame:
    """Return, for every run, the mean of n evaluations from the one that follows ``share`` of its steps.

    :param table: Results.
    :param share: Of the run's steps, between 0 and 1.
    :param n: Number of evaluations.
    :param key: The column.
    :raises ValueError: if a run has fewer than n evaluations from there on.
    """
    table = table.sort_values("step").dropna(subset=[key])
    last = table.groupby(RUN)["step"].transform("max")
    return _means(table[table.step >= share * last].groupby(RUN, sort=False).head(n), n, key)


def largest_drops(table: pd.DataFrame, key: str = "eval_return") -> pd.DataFrame:
    """Return, for every run, the most that a column falls below its highest value before, relative to its whole gain.

    max over t of (max over s ≤ t of x_s − x_t) / (max x − x_0): 0 if it only rises, 1 if it falls from its top to
    where it began. Columns ``variant``, ``task``, ``seed``, ``value``; runs that never rise are left out.

    :param table: Results; rows in which ``key`` is missing do not count.
    :param key: The column.
    """
    table = table.sort_values("step").dropna(subset=[key])
    runs = table.groupby(RUN)[key]
    drops = (runs.cummax() - table[key]).groupby([table[name] for name in RUN]).max()
    gains = runs.max() - runs.first()
    return (drops / gains)[gains > 0].rename("value").reset_index()


def normalize(
    scores: pd.DataFrame, reference: Mapping[str, float], random: Mapping[str, float]
) -> tuple[pd.DataFrame, list[str]]:
    """Return (value − random) / (reference − random) for every run, and the tasks for which that means nothing.

    Those are the tasks on which the reference is missing or not better than random play; they are left out.

    :param scores: Columns ``variant``, ``task``, ``seed``, ``value``.
    :param reference: Return by task that becomes 1.
    :param random: Return by task that becomes 0.
    """
    left_out = [task for task in scores.task.unique() if not reference.get(task, np.nan) > random[task]]
    scores = scores[~scores.task.isin(left_out)]
    low, high = scores.task.map(random).astype(float), scores.task.map(reference).astype(float)
    return scores.assign(value=(scores.value - low) / (high - low)), left_out


def score_matrix(scores: pd.DataFrame) -> np.ndarray:
    """Return the scores of one variant as an array ``(seeds, tasks)``.

    :raises ValueError: unless every task has every seed.
    """
    matrix = scores.pivot(index="seed", columns="task", values="value")
    missing = matrix.isna().sum()
    if missing.any():
        tasks = ", ".join(missing.index[missing > 0])
        raise ValueError(f"Seeds are missing on {tasks}: every task needs the same ones.")
    return matrix.to_numpy()


def means_over_tasks(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over tasks of every variant and seed that has all of them, as rows of the task ``ALL_TASKS``.

    :param scores: Columns ``variant``, ``task``, ``seed``, ``value``.
    """
    runs = scores.groupby(["variant", "seed"], sort=False).value
    means = runs.mean()[runs.count() == scores.task.nunique()]
    return means.reset_index().assign(task=ALL_TASKS)


def interquartile_mean(scores: np.ndarray, repetitions: int = 5000, seed: int = 0) -> Estimate:
    """Return the mean of the middle half of all scores, with rliable's stratified bootstrap interval (95 %).

    :param scores: ``(seeds, tasks)``; seeds are drawn anew for every task.
    :param repetitions: Of the bootstrap.
    :param seed: Of the bootstrap.
    """
    from rliable import library, metrics

    state = np.random.get_state()  # noqa: NPY002  rliable draws from numpy's global generator
    np.random.seed(seed)  # noqa: NPY002
    try:
        points, intervals = library.get_interval_estimates(
            {"": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=repetitions
        )
    finally:
        np.random.set_state(state)  # noqa: NPY002
    low, high = intervals[""].ravel() if len(scores) > 1 else (float("nan"), float("nan"))
    return Estimate(float(points[""][0]), float(low), float(high))


def _quantile(count: np.ndarray | int, confidence: float) -> np.ndarray:
    """Return Student's quantile for ``count`` values, NaN for one."""
    return stats.t.ppf((1 + confidence) / 2, np.asarray(count) - 1)


def _means(rows: pd.DataFrame, n: int, key: str) -> pd.DataFrame:
    """Return a column's mean for every run, in the order of the rows' index."""
    groups = rows.sort_index().groupby(RUN, sort=False)[key]
    counts = groups.count()
    if (counts < n).any():
        run, count = counts.idxmin(), counts.min()
        raise ValueError(f"The run {run} has {count} evaluations where {n} are needed: evaluate more often.")
    return groups.mean().rename("value").reset_index()
