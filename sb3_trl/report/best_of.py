"""The best of several variants on each task, as if it were one: the baseline that somebody tuned task by task."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from sb3_trl.report.figures import task_name
from sb3_trl.report.statistics import final_evaluations

__all__ = ["best_text", "best_variants", "with_best"]


def best_variants(table: pd.DataFrame, variants: Sequence[str], last: int) -> dict[str, str]:
    """Return which variant has the highest mean final return over seeds, for every task that any of them has.

    The choice is made with the very runs that are then reported, to the advantage of whoever is chosen.

    :param table: Results.
    :param variants: To choose among.
    :param last: Number of evaluations whose mean is a run's final result.
    """
    own = table[table.variant.isin(variants)]
    means = final_evaluations(own, last).groupby(["task", "variant"]).value.mean()
    return {task: means[task].idxmax() for task in dict.fromkeys(own.task)}


def with_best(table: pd.DataFrame, name: str, variants: Sequence[str], last: int) -> pd.DataFrame:
    """Return results with the rows of the best variant of each task once more, under a name of their own.

    :param table: Results.
    :param name: Of the variant that joins them.
    :param variants: To choose among.
    :param last: Number of evaluations whose mean is a run's final result.
    :raises ValueError: if the name is taken, a variant is unknown, or there is none to choose.
    """
    there = list(dict.fromkeys(table.variant))
    if not variants:
        raise ValueError(f"{name!r} is to be the best of no variants: name those to choose among after it.")
    if name in there:
        raise ValueError(f"There is a variant {name!r} already: give the best of several another name.")
    for variant in variants:
        if variant not in there:
            raise ValueError(f"There is no variant {variant!r}. There are {', '.join(there)}.")
    best = best_variants(table, variants, last).items()
    rows = [table[(table.variant == variant) & (table.task == task)].assign(variant=name) for task, variant in best]
    return pd.concat([table, *rows], ignore_index=True)


def best_text(table: pd.DataFrame, name: str, variants: Sequence[str], last: int) -> str:
    """Return a sentence that says what the best of each task is; arguments as in ``with_best``."""
    best = best_variants(table[table.variant != name], variants, last)
    chosen = ", ".join(f"{variant} on {task_name(task)}" for task, variant in best.items())
    return (
        f"{name} is the one of {', '.join(variants)} with the highest mean return of these very seeds, on each task: "
        f"{chosen}."
    )
