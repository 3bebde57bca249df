"""Figure 6 of the FixPO paper (Zentner et al., 2023): success on Meta-World's fifty tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sb3_trl.papers.item import Item, Results
from sb3_trl.papers.scales import Part
from sb3_trl.report.estimates import by_variant
from sb3_trl.report.figures import task_name
from sb3_trl.report.statistics import Estimate, final_evaluations, mean_interval
from sb3_trl.report.tables import estimate_text, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COMPARED", "METAWORLD_ITEMS", "mean_curve"]

COMPARED = {"FixPO": "C3", "TRPL-KL": "C0", "PPO": "0.15"}
RUN = ["task", "seed"]


def mean_curve(table: pd.DataFrame, by: str, points: int = 50) -> pd.DataFrame:
    """Return the mean success over runs, with its standard error, at points that all runs have passed.

    A run is read between its rows on a straight line, from none at all before the first; the mean ends where the first
    run does.

    :param table: Results of one variant.
    :param by: The column that is the axis: ``"step"`` or ``"seconds"``.
    :param points: How many.
    :return: Columns ``mean`` and ``error`` (NaN of one run alone), by the axis.
    """
    runs = [run.dropna(subset=["train_success"]).sort_values(by) for _, run in table.groupby(RUN)]
    runs = [run for run in runs if len(run)]
    if not runs:
        return pd.DataFrame({"mean": [], "error": []})
    axis = np.linspace(0.0, min(run[by].max() for run in runs), points)
    curves = np.array([np.interp(axis, [0.0, *run[by]], [0.0, *run.train_success]) for run in runs])
    error = curves.std(axis=0, ddof=1) / np.sqrt(len(runs)) if len(runs) > 1 else np.full(points, np.nan)
    return pd.DataFrame({"mean": curves.mean(axis=0), "error": error}, index=pd.Index(axis, name=by))


def _success(results: Results) -> tuple[Figure, str]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    by_steps, by_hours = figure.subplots(1, 2, sharey=True)
    for name, table in by_variant(results.table, COMPARED):
        _draw(by_steps, mean_curve(table, "step"), name, 1e6)
        _draw(by_hours, mean_curve(table, "seconds"), name, 3600.0)
    by_steps.set(xlabel="environment steps of a run (millions)", ylabel="success in training, mean of all runs")
    by_hours.set(xlabel="hours of a run")
    figure.legend(*by_steps.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure, (
        "Success in training, as the paper has it: of the last hundred episodes, with the noise of exploration; bands "
        f"are standard errors over runs.\n\n{_table(results)}\n\nIn %, of the last evaluations, without noise: an "
        "episode with success in any of its steps. Hours are of one core, with evaluations; runs that shared it took "
        "longer."
    )


def _draw(axis: Axes, curve: pd.DataFrame, name: str, unit: float) -> None:
    x = curve.index.to_numpy() / unit
    axis.plot(x, curve["mean"], color=COMPARED[name], label=name, linewidth=1.6)
    axis.fill_between(
        x, curve["mean"] - curve.error, curve["mean"] + curve.error, color=COMPARED[name], alpha=0.15, linewidth=0
    )
    axis.set_ylim(-0.03, 1.03)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _table(results: Results) -> str:
    """Return a row for each task, one for all of them, and the hours of a run."""
    table = results.table
    final = final_evaluations(table, results.last, "eval_success")
    final["value"] *= 100
    names = [name for name, _ in by_variant(table, COMPARED)]

    def row(title: str, values: pd.DataFrame, bold: bool = False) -> list[str]:
        return [title, *(estimate_text(_mean(values, name), bold=bold) for name in names)]

    rows = [row(task_name(task), final[final.task == task]) for task in dict.fromkeys(table.task)]
    whole = final.groupby(["variant", "seed"]).value
    means = whole.mean()[whole.count() == final.task.nunique()].reset_index()
    hours = table.groupby(["variant", *RUN]).seconds.max().div(3600).rename("value").reset_index()
    return markdown_table(
        ["success", *names],
        [*rows, row("mean of all tasks", means, bold=True), row("hours of a run", hours)],
    )


def _mean(values: pd.DataFrame, name: str) -> Estimate:
    return mean_interval(values[values.variant == name].value)


METAWORLD_ITEMS = {
    "fixpo-fig6": Item(
        "FixPO, Fig. 6: success on each of Meta-World's tasks, against steps and hours",
        (Part("fixpo_metaworld", tuple(COMPARED)),),
        _success,
    ),
}
