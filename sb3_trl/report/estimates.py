"""From a table of results to estimates over seeds and tasks, and these as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from sb3_trl.report.statistics import (
    Estimate,
    final_evaluations,
    interquartile_mean,
    mean_interval,
    normalize,
    score_matrix,
)
from sb3_trl.report.tables import estimate_text, interval_text, markdown_table, number_text
from sb3_trl.study.rows import VERSIONS

__all__ = [
    "DIVERGENCE_COLUMNS",
    "aggregate",
    "by_variant",
    "check_names",
    "divergence_texts",
    "estimate_of",
    "final_table",
    "final_text",
    "runs_text",
    "variants_of",
    "versions_text",
]


#: Mean, spread and maximum over updates of the mean divergence.
DIVERGENCE_COLUMNS = ("mean KL of an update", "its std over updates", "largest between two evaluations")


def variants_of(table: pd.DataFrame) -> list[str]:
    """Return the variants of a table in its order."""
    return list(dict.fromkeys(table.variant))


def check_names(table: pd.DataFrame, column: str, names: Iterable[str]) -> None:
    """Raise a ``ValueError`` for a name that a column of the table has not."""
    there = list(dict.fromkeys(table[column]))
    for name in names:
        if name not in there:
            raise ValueError(f"There is no {column} {name!r}. There are {', '.join(there)}.")


def by_variant(table: pd.DataFrame, order: Iterable[str] | None = None) -> list[tuple[str, pd.DataFrame]]:
    """Return the rows of each variant that has some, in the order given or in the table's."""
    present = variants_of(table)
    return [(name, table[table.variant == name]) for name in order or present if name in present]


def estimate_of(values: pd.DataFrame, variant: str, task: str) -> Estimate:
    """Return the mean over seeds of ``value`` for a variant on a task, NaN if there are no runs."""
    own = values[(values.variant == variant) & (values.task == task)].value
    return mean_interval(own) if len(own) else Estimate(*[float("nan")] * 3)


def final_text(table: pd.DataFrame, key: str, last: int) -> str:
    """Return a column's mean at the end of training, over all runs of the table."""
    return estimate_text(mean_interval(final_evaluations(table, last, key).value))


def final_table(table: pd.DataFrame, last: int, names: Mapping[str, str] | None = None) -> str:
    """Return final returns: a row for every variant, a column for every task; – where there are no runs.

    :param table: Results.
    :param last: Number of evaluations behind a final result.
    :param names: What to call variants in the table.
    """
    final = final_evaluations(table, last)
    tasks = list(dict.fromkeys(table.task))
    rows = [
        [(names or {}).get(name, name), *(estimate_text(estimate_of(final, name, task)) for task in tasks)]
        for name in names or variants_of(table)
    ]
    return markdown_table(["return at the end", *tasks], rows)


def divergence_texts(table: pd.DataFrame) -> list[str]:
    """Return ``DIVERGENCE_COLUMNS`` of one variant on one task: two estimates over seeds, and the largest of all."""
    runs = table.dropna(subset=["kl_mean"]).groupby("seed")
    spread = np.sqrt(runs.kl_mean.var(ddof=0) + runs.kl_spread.apply(lambda x: x.pow(2).mean()).fillna(0))
    return [
        estimate_text(mean_interval(runs.kl_mean.mean())),
        estimate_text(mean_interval(spread)),
        number_text(runs.kl_mean.max().max()),
    ]


def aggregate(final: pd.DataFrame, reference: str, random: Mapping[str, float]) -> tuple[dict[str, Estimate], str]:
    """Return interquartile means over tasks of returns, normalised by a variant's and random play's, and a table.

    Variants that lack runs are left out, as are tasks on which the reference is not better than random play.

    :param final: Columns ``variant``, ``task``, ``seed``, ``value``.
    :param reference: The variant.
    :param random: Return of random play, by task.
    """
    means = final[final.variant == reference].groupby("task").value.mean().to_dict()
    scores, left_out = normalize(final, means, random)
    estimates = {name: interquartile_mean(matrix) for name, matrix in _complete(scores).items()}
    text = ""
    if estimates:
        rows = [[name, interval_text(estimates[name])] for name in variants_of(final) if name in estimates]
        text = (
            f"{markdown_table(['', 'interquartile mean over tasks and seeds'], rows)}\n\nFinal returns as (return − "
            f"random play) / ({reference} − random play); 95 % intervals by stratified bootstrap."
        )
    if left_out:
        text += f"\n\n{reference} has no runs, or is not better than random play, on {', '.join(left_out)}: left out."
    return estimates, text.strip()


def _complete(scores: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the score matrices of the variants that have the same seeds on every task, as many as any variant has."""
    counts = scores.groupby(["variant", "task"]).size().unstack(fill_value=0)
    complete = counts.index[(counts == counts.to_numpy().max(initial=0)).all(axis=1)]
    own = {name: scores[scores.variant == name] for name in complete}
    return {name: score_matrix(runs) for name, runs in own.items() if runs.seed.nunique() == counts.loc[name].max()}


def runs_text(table: pd.DataFrame) -> str:
    """Return how many seeds a table's runs have, and how many steps, as text."""
    steps = " or ".join(f"{step:.0f}" for step in sorted(table.groupby("task").step.max().unique()))
    seeds = sorted(table.groupby(["variant", "task"]).seed.nunique().unique())
    return f"{' or '.join(map(str, seeds))} seeds, {steps} steps"


def versions_text(table: pd.DataFrame) -> str:
    """Return the versions that a table's runs were made with, as text."""
    return ", ".join(f"{name} {' or '.join(map(str, table[name].unique()))}" for name in VERSIONS)
