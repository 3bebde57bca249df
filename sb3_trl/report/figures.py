"""Learning curves and final results: means over seeds with 95 % intervals for every method, a panel for every task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sb3_trl.report.statistics import Estimate, band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "Style", "draw_curves", "draw_estimates", "limits", "task_name"]

#: Keyword arguments of a line.
Style = Mapping[str, Any]
COLUMNS = 3
FEWEST_FOR_A_BAND = 3


def draw_curves(
    table: pd.DataFrame,
    key: str,
    label: str,
    styles: Mapping[str, Style],
    titles: Mapping[str, str] | None = None,
    lines: Mapping[str, float] | None = None,
    height: float = 3.4,
) -> Figure:
    """Draw a column over environment steps: lines for means over seeds, bands for their 95 % intervals.

    Where there are fewer than three seeds, thin lines for the runs take the place of bands, which would fill the
    picture. What the runs have reached decides the limits.

    :param table: Results; the variants that are drawn are those of ``styles``, the tasks those of the table.
    :param key: The column.
    :param label: What the column is, with its unit.
    :param styles: Style of each variant's line, in the legend's order; ``label`` in it names the variant otherwise.
    :param titles: Titles of the panels, by task; by default the tasks' names.
    :param lines: Labels and heights of horizontal lines.
    :param height: Of one row of panels, in inches.
    """
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(table.task))
    rows = -(-len(tasks) // COLUMNS)
    columns = -(-len(tasks) // rows)
    width = 7.0 if len(tasks) == 1 else 4.2 * columns
    labels = [*(str(style.get("label", name)) for name, style in styles.items()), *(lines or {})]
    legend_columns = _legend_columns(width, labels)
    figure = Figure(figsize=(width, height * rows + 0.25 * -(-len(labels) // legend_columns)))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(tasks) :]:
        axis.axis("off")
    unit, word = _step_unit(table.step.max())
    for axis, task in zip(axes, tasks, strict=False):
        _draw_panel(axis, table[table.task == task], key, styles, unit)
        for text, y in (lines or {}).items():
            axis.axhline(y, color="black", linestyle=":", linewidth=1.2, label=text)
        reached = table[(table.task == task) & table.variant.isin(styles)][key]
        axis.set_ylim(limits([*reached, *(lines or {}).values()]))
        axis.set(title=(titles or {}).get(task, task_name(task)), xlabel=f"environment steps{word}")
    for axis in axes[::columns]:
        axis.set_ylabel(label)
    _add_legend(figure, list(axes[: len(tasks)]), legend_columns)
    return figure


@dataclass(frozen=True)
class Panel:
    """One panel of dots.

    :param title: Its title.
    :param xlabel: What its axis shows.
    :param series: Estimates by variant; the last series has full dots, those before it hollow ones.
    """

    title: str
    xlabel: str
    series: tuple[Mapping[str, Estimate], ...]


def draw_estimates(panels: Sequence[Panel], styles: Mapping[str, Style], labels: Sequence[str] = ()) -> Figure:
    """Draw estimates as dots with their intervals, a row for every variant and a panel for every task.

    :param panels: What is drawn; a panel may lack variants, and series.
    :param styles: Style of each variant, of which ``color`` counts, in the order of the rows.
    :param labels: Names of the series, for a legend.
    """
    from matplotlib.figure import Figure

    order = list(styles)
    figure = Figure(figsize=(2.6 * len(panels) + 1.2, 0.42 * len(order) + 1.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        shifts = np.linspace(-0.16, 0.16, len(panel.series)) if len(panel.series) > 1 else [0.0]
        for series, shift in zip(panel.series, shifts, strict=True):
            fill = "full" if series is panel.series[-1] else "none"
            for name, estimate in series.items():
                y, color = order.index(name) + shift, styles[name]["color"]
                axis.plot([estimate.low, estimate.high], [y, y], color=color, linewidth=1.3, alpha=0.6)
                axis.plot([estimate.value], [y], "o", color=color, fillstyle=fill, linewidth=1.3)
        axis.set(title=panel.title, xlabel=panel.xlabel)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(order)), order)
    axes[0].invert_yaxis()
    if labels:
        fills = ["none"] * (len(labels) - 1) + ["full"]
        handles = [axes[0].plot([], [], "o", color="0.3", fillstyle=fill)[0] for fill in fills]
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def limits(values: Iterable[float], margin: float = 0.06) -> tuple[float, float]:
    """Return the smallest and the largest of some values, and a margin; missing ones do not count."""
    present = np.array([value for value in values if np.isfinite(value)] or [0.0])
    low, high = present.min(), present.max()
    room = margin * (high - low) or 0.5 * abs(high) or 1.0
    return float(low - room), float(high + room)


def task_name(task: str) -> str:
    """Return an environment's id without its namespace: ``HalfCheetah-v5``, ``ReacherSparse5-v0``."""
    return task.rpartition("/")[2]


def _draw_panel(axis: Axes, table: pd.DataFrame, key: str, styles: Mapping[str, Style], unit: float) -> None:
    for number, (variant, style) in enumerate(styles.items()):
        rows = table[table.variant == variant]
        curve = band(rows, key) if len(rows) else rows
        if not len(curve):
            continue
        line = {"color": f"C{number}", "label": variant, "linewidth": 1.6, **style}
        x = curve.index.to_numpy() / unit
        axis.plot(x, curve["mean"], marker="." if len(curve) < 12 else None, **line)
        if rows.seed.nunique() < FEWEST_FOR_A_BAND:
            for _, run in rows.groupby("seed"):
                axis.plot(run.step / unit, run[key], color=line["color"], alpha=0.3, linewidth=0.7)
        else:
            axis.fill_between(x, curve.low, curve.high, color=line["color"], alpha=0.15, linewidth=0)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _add_legend(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """Put one legend for all panels below them, where it covers nothing."""
    entries: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns, frameon=False)


def _legend_columns(width: float, labels: Sequence[str]) -> int:
    """Return in how many columns such labels fit into so many inches, all columns nearly equally long."""
    longest = max(len(label.replace("\\", "").replace("$", "")) for label in labels)
    most = max(int(width / (0.55 + 0.08 * longest)), 1)
    rows = -(-len(labels) // most)
    return -(-len(labels) // rows)


def _step_unit(steps: float) -> tuple[float, str]:
    """Return by what to divide steps, and how to say so."""
    return (1e6, " (millions)") if steps >= 1e6 else (1e3, " (thousands)") if steps >= 1e4 else (1.0, "")
