"""The part of a report that is about single tasks of policies that learn many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sb3_trl.report.estimates import estimate_of
from sb3_trl.report.figures import Style, draw_curves, task_name
from sb3_trl.report.statistics import final_evaluations
from sb3_trl.report.tables import estimate_text, markdown_table
from sb3_trl.study.task_rows import BY_TASK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["by_task_sections", "read_by_task"]

#: What is drawn of each task, where it was measured: column, name of the picture, label of its axis.
_DRAWN = (
    ("kl_mean", "tasks_divergence", "mean KL(acting ‖ old) (nats)"),
    ("beta", "tasks_beta", "β"),
)


def read_by_task(paths: Sequence[Path]) -> pd.DataFrame:
    """Return the rows of single tasks that stand beside results; none where no policy learned many.

    Beside a study's ``results.csv`` that is ``by_task.csv``, beside ``other.csv`` it is ``other_by_task.csv``.

    :param paths: Results, compressed or not, or folders that hold them.
    """
    files = [_beside(path / "results.csv" if path.is_dir() else path) for path in paths]
    tables = [pd.read_csv(file) for file in files if file.is_file()]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def by_task_sections(
    table: pd.DataFrame | None, tasks: pd.Series, last: int, styles: Mapping[str, Style]
) -> tuple[list[str], dict[str, Figure]]:
    """Return what a page says of single tasks, and its pictures by their names; nothing without rows.

    :param table: Rows of single tasks, as ``by_task.csv`` has them.
    :param tasks: Ids of the environments that count.
    :param last: Number of evaluations whose mean is a run's final result.
    :param styles: Of the variants that count.
    """
    if table is None or table.empty:
        return [], {}
    table = table[table.variant.isin(styles) & table.task.isin(tasks)]
    has_successes = bool(table.eval_success.notna().any())
    key, label, unit = ("eval_success", "success", 100) if has_successes else ("eval_return", "return", 1)
    table = table.assign(task=_names(table))
    evaluated = table.dropna(subset=[key])
    if not len(evaluated):
        return [], {}
    final = final_evaluations(evaluated, last, key)
    pictures = {"tasks": draw_curves(evaluated, key, f"{label} of evaluations", styles)}
    sections = ["## Each task of one policy", f"![{label} of each task](tasks.png)"]
    variants = [name for name in styles if name in set(final.variant)]
    title = f"{label}, in %" if has_successes else label
    sections.append(_table(final.assign(value=unit * final.value), title, variants))
    for column, name, axis in _DRAWN:
        measured = table.dropna(subset=[column])
        if len(measured):
            pictures[name] = draw_curves(measured, column, axis, styles)
            sections.append(f"![{axis} of each task]({name}.png)")
    return sections, pictures


def _beside(file: Path) -> Path:
    stem, suffix, compression = file.name.partition(".csv")
    return file.with_name(BY_TASK if stem == "results" else f"{stem}_by_task{suffix}{compression}")


def _names(table: pd.DataFrame) -> pd.Series:
    """Return names of the tasks, with the environment's id where there are several."""
    if table.task.nunique() == 1:
        return table.subtask.astype(str)
    return table.task.map(task_name) + ": " + table.subtask.astype(str)


def _table(final: pd.DataFrame, title: str, variants: Sequence[str]) -> str:
    """Return final results: a row for every task, a column for every variant, the best of each task bold."""

    def row(task: str) -> list[str]:
        own = final[final.task == task]
        best = own.groupby("variant").value.mean().idxmax()
        return [task, *(estimate_text(estimate_of(own, name, task), bold=name == best) for name in variants)]

    return markdown_table([title, *variants], [row(task) for task in dict.fromkeys(final.task)])
