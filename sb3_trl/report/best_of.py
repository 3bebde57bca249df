"""The best of several variants on each task, as if it were one: the baseline that somebody tuned task by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from sb3_trl.report.estimates import check_names, variants_of
from sb3_trl.report.figures import task_name
from sb3_trl.report.statistics import final_evaluations

__all__ = ["best_variants", "with_best"]


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


def with_best(
    table: pd.DataFrame, best_of: Mapping[str, Sequence[str]], last: int
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return results with the rows of the best variants once more, under names of their own, and who they are.

    :param table: Results.
    :param best_of: Names of the variants that join them, and those to choose among on each task.
    :param last: Number of evaluations whose mean is a run's final result.
    :return: The table, and for each name a sentence that says which variant it is on which task.
    :raises ValueError: if a name is taken, a variant is unknown, or there is none to choose.
    """
    sentences = {}
    for name, variants in best_of.items():
        if not variants:
            raise ValueError(f"{name!r} is to be the best of no variants: name those to choose among after it.")
        if name in variants_of(table):
            raise ValueError(f"There is a variant {name!r} already: give the best of several another name.")
        check_names(table, "variant", variants)
        best = best_variants(table, variants, last)
        rows = [table[(table.variant == one) & (table.task == task)] for task, one in best.items()]
        table = pd.concat([table, *(own.assign(variant=name) for own in rows)], ignore_index=True)
        chosen = ", ".join(f"{variant} on {task_name(task)}" for task, variant in best.items())
        sentences[name] = (
            f"{name} is the one of {', '.join(variants)} with the highest mean return of these very seeds, on each "
            f"task: {chosen}."
        )
    return table, sentences
