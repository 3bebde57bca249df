"""Figure 6 of the FixPO paper (Zentner et al., 2023): success on Meta-World's fifty tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sb3_trl.papers.item import Item, Results
from sb3_trl.papers.scales import Part
from sb3_trl.report.estimates import by_variant, estimate_of
from sb3_trl.report.figures import task_name
from sb3_trl.report.statistics import ALL_TASKS, final_evaluations, means_over_tasks
from sb3_trl.report.tables import estimate_text, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COMPARED", "METAWORLD_ITEMS", "draw_success", "mean_curve"]

COMPARED = {"FixPO": "C3", "TRPL-KL": "C0", "PPO": "0.15"}
RUN = ["task", "seed"]


def mean_curve(table: pd.DataFrame, by: str, points: int = 50, is_new: bool = True) -> pd.DataFrame:
    """Return the mean success over runs, with its standard error, at points that all runs have passed.

    A run is read between its rows on a straight line, from none at all before the first; the mean ends where the first
    run does.

    :param table: Results of one variant.
    :param by: The column that is the axis: ``"step"`` or ``"seconds"``.
    :param points: How many.
    :param is_new: Whether the models were new; of others nothing is known before the first row, where the mean begins.
    :return: Columns ``mean`` and ``error`` (NaN of one run alone), by the axis.
    """
    runs = [run.dropna(subset=["train_success"]).sort_values(by) for _, run in table.groupby(RUN)]
    runs = [run for run in runs if len(run)]
    if not runs:
        return pd.DataFrame({"mean": [], "error": []})
    before = [0.0] if is_new else []
    first = 0.0 if is_new else max(run[by].min() for run in runs)
    axis = np.linspace(first, min(run[by].max() for run in runs), points)
    curves = np.array([np.interp(axis, [*before, *run[by]], [*before, *run.train_success]) for run in runs])
    error = curves.std(axis=0, ddof=1) / np.sqrt(len(runs)) if len(runs) > 1 else np.full(points, np.nan)
    return pd.DataFrame({"mean": curves.mean(axis=0), "error": error}, index=pd.Index(axis, name=by))


def _success(results: Results) -> tuple[Figure, str]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    by_steps, by_hours = figure.subplots(1, 2, sharey=True)
    for name, table in by_variant(results.table, COMPARED):
        draw_success(by_steps, mean_curve(table, "step"), 1e6, label=name, color=COMPARED[name])
        draw_success(by_hours, mean_curve(table, "seconds"), 3600.0, label=name, color=COMPARED[name])
    by_steps.set(xlabel="environment steps of a run (millions)", ylabel="success in training, mean of all runs")
    by_hours.set(xlabel="hours of a run")
    figure.legend(*by_steps.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure, (
        "Success in training, as the paper has it: of the last hundred episodes, with the noise of exploration; bands "
        f"are standard errors over runs.\n\n{_table(results)}\n\nIn %, of the last evaluations, without noise: an "
        "episode with success in any of its steps. Hours are of one core, with evaluations; runs that shared it took "
        "longer."
    )


def draw_success(axis: Axes, curve: pd.DataFrame, unit: float, color: str, **style: Any) -> None:
    """Draw what ``mean_curve`` returned: a line, and a band of the standard error.

    :param axis: Where to draw.
    :param curve: The curve.
    :param unit: By what to divide its axis.
    :param color: Of both.
    :param style: Of the line, and its label.
    """
    x = curve.index.to_numpy() / unit
    axis.plot(x, curve["mean"], color=color, linewidth=1.6, **style)
    axis.fill_between(x, curve["mean"] - curve.error, curve["mean"] + curve.error, color=color, alpha=0.15, linewidth=0)
    axis.set_ylim(-0.03, 1.03)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _table(results: Results) -> str:
    """Return a row for each task, one for all of them, and the hours of a run."""
    table = results.table
    final = final_evaluations(table, results.last, "eval_success")
    final["value"] *= 100
    names = [name for name, _ in by_variant(table, COMPARED)]

    def row(title: str, values: pd.DataFrame, task: str, bold: bool = False) -> list[str]:
        return [title, *(estimate_text(estimate_of(values, name, task), bold=bold) for name in names)]

    rows = [row(task_name(task), final, task) for task in dict.fromkeys(table.task)]
    rows.append(row("mean of all tasks", means_over_tasks(final), ALL_TASKS, bold=True))
    hours = table.groupby(["variant", *RUN]).seconds.max().div(3600).rename("value").reset_index()
    rows.append(row("hours of a run", hours.assign(task=ALL_TASKS), ALL_TASKS))
    return markdown_table(["success", *names], rows)


METAWORLD_ITEMS = {
    "fixpo-fig6": Item(
        "FixPO, Fig. 6: success on each of Meta-World's tasks, against steps and hours",
        (Part("fixpo_metaworld", tuple(COMPARED)),),
        _success,
    ),
}
