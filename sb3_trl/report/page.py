"""``sb3-trl report``: the results of a study as a page of tables and pictures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sb3_trl.report.best_of import with_best
from sb3_trl.report.by_task import by_task_sections, read_by_task
from sb3_trl.report.estimates import (
    DIVERGENCE_COLUMNS,
    aggregate,
    by_variant,
    check_names,
    divergence_texts,
    estimate_of,
    runs_text,
    variants_of,
    versions_text,
)
from sb3_trl.report.figures import Panel, Style, draw_curves, draw_estimates, task_name
from sb3_trl.report.random_policy import shipped_returns
from sb3_trl.report.statistics import (
    Estimate,
    final_evaluations,
    largest_drops,
    mean_interval,
    means_over_tasks,
    prediction_interval,
)
from sb3_trl.report.tables import estimate_text, interval_text, markdown_table, number_text
from sb3_trl.report.unfinished import missing_runs, missing_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["main", "report"]


def main() -> None:
    """Report the results that the command line names; say what a study lacks that has not finished."""
    args = _parser().parse_args()
    first = args.results[0]
    out = args.out or (first if first.is_dir() else first.parent)
    table, best_of = read_results(args.results), {name: variants for name, *variants in args.best_of}
    shown = args.variants and [one for name in args.variants for one in best_of.get(name, [name])]
    note = missing_text(*missing_runs(args.results, table, shown, args.tasks))
    by_task = read_by_task(args.results)
    print(report(table, out, args.last, args.reference, args.variants, args.tasks, note, by_task, best_of))
    if note:
        print(note, file=sys.stderr)


def report(
    table: pd.DataFrame,
    out: Path,
    last: int = 5,
    reference: str | None = None,
    variants: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    note: str = "",
    by_task: pd.DataFrame | None = None,
    best_of: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Write ``report.md``, ``returns.png``, ``finals.png`` and, where measured, ``success.png``, ``divergence.png``.

    Of policies that learned many tasks ``tasks.png``, and where measured ``tasks_divergence.png``, ``tasks_beta.png``.

    :param table: Results of one study or several, as ``results.csv`` has them.
    :param out: Folder.
    :param last: Number of evaluations whose mean is a run's final result.
    :param reference: The variant whose return is 1 in normalised scores; random play is 0. ``None`` for no scores.
    :param variants: Those to report, in this order; all by default.
    :param tasks: Those to report, in this order; all by default.
    :param note: Stands first on the page.
    :param by_task: Results of each task of policies that learned many, as ``by_task.csv`` has them.
    :param best_of: Names of further variants, each the best on every task of those that it maps to.
    :return: The page.
    :raises ValueError: for a variant or task that the table has not, a task whose random play is unknown although a
        reference is given, or runs with fewer than ``last`` evaluations.
    """
    table, about_best = with_best(_chosen(table, "task", tasks), best_of or {}, last)
    table = _chosen(table, "variant", variants)
    if "eval_success" not in table:  # results of an earlier version
        table = table.assign(eval_success=float("nan"))
    if reference is not None:
        check_names(table, "variant", [reference])
    out.mkdir(parents=True, exist_ok=True)
    styles = _styles(variants_of(table))
    final = final_evaluations(table, last)
    estimates, scores = aggregate(final, reference, _random_returns(table)) if reference else ({}, "")
    title = f"# {' and '.join(dict.fromkeys(table.study))}"
    sections = [title, note, "![final returns](finals.png)", returns_table(final)]
    sections += [about_best[name] for name in variants_of(table) if name in about_best]
    pictures = {
        "finals": _draw_finals(final, estimates, reference, styles),
        "returns": draw_curves(table, "eval_return", "return", styles),
    }
    sections += [scores, seeds_table(final), "## Learning curves", "![learning curves](returns.png)"]
    judged = table.dropna(subset=["eval_success"])
    if len(judged):
        pictures["success"] = draw_curves(judged, "eval_success", "success of evaluations", styles)
        successes = success_table(final_evaluations(judged, last, "eval_success"))
        sections += ["## Success", "![success](success.png)", successes]
    measured = table.dropna(subset=["kl_mean"])
    if len(measured):
        pictures["divergence"] = draw_curves(measured, "kl_mean", "mean KL(acting ‖ old) (nats)", styles)
        sections += ["## How far updates move the policy", "![divergence](divergence.png)", _divergence_text(measured)]
    own, drawn = by_task_sections(by_task, table.task, last, styles)
    training = ["## Returns lost on the way, and entropy", _training_text(table, last)]
    origin = ["## How the numbers came about", _caption(table, last), _seconds_text(table)]
    return _write(out, [*sections, *own, *training, *origin], pictures | drawn)


def _write(out: Path, sections: Sequence[str], pictures: Mapping[str, Figure]) -> Path:
    for name, figure in pictures.items():
        figure.savefig(out / f"{name}.png", dpi=150)
    page = out / "report.md"
    page.write_text("\n\n".join(filter(None, sections)) + "\n")
    return page


def read_results(paths: Sequence[Path]) -> pd.DataFrame:
    """Return the rows of one or more ``results.csv``, compressed or not, of folders that hold one, one after another.

    :raises ValueError: for a file that is not the results of a study, or if no run has finished yet.
    """
    tables = []
    for path in paths:
        file = path / "results.csv" if path.is_dir() else path
        tables.append(pd.read_csv(file))
        missing = [name for name in ("study", "variant", "task", "seed", "eval_return") if name not in tables[-1]]
        if missing:
            raise ValueError(f"{file} is not the results.csv of a study: it has no column {', '.join(missing)}.")
    tables = [table for table in tables if len(table)]  # columns without rows have no kind
    if not tables:
        raise ValueError(f"No run of {' or '.join(map(str, paths))} has finished yet: report when one has.")
    return pd.concat(tables, ignore_index=True)


def returns_table(final: pd.DataFrame, title: str = "final return") -> str:
    """Return final returns: a row for every variant, a column for every task, the best of each bold.

    :param final: Columns ``variant``, ``task``, ``seed``, ``value``.
    :param title: What the values are.
    """
    tasks, variants = list(dict.fromkeys(final.task)), variants_of(final)
    best = {task: final[final.task == task].groupby("variant").value.mean().idxmax() for task in tasks}
    rows = [
        [name, *(estimate_text(estimate_of(final, name, task), bold=name == best[task]) for task in tasks)]
        for name in variants
    ]
    return markdown_table([title, *map(task_name, tasks)], rows)


def success_table(final: pd.DataFrame) -> str:
    """Return final shares of successful episodes, in %, as ``returns_table`` does returns.

    Where there are several tasks the last column is their mean; variants that lack some of a seed's have none.

    :param final: Columns ``variant``, ``task``, ``seed``, ``value``, a share.
    """
    final = final.assign(value=100 * final.value)
    if final.task.nunique() > 1:
        final = pd.concat([final, means_over_tasks(final)], ignore_index=True)
    note = "Episodes with success in any of their steps, in % of those of the last evaluations."
    return f"{returns_table(final, 'success')}\n\n{note}"


def seeds_table(final: pd.DataFrame) -> str:
    """Return the final return of every run, their mean and where further seeds end: a row for each task and variant.

    :param final: Columns ``variant``, ``task``, ``seed``, ``value``.
    """
    rows = [
        [task_name(task), name, ", ".join(map(number_text, runs.value)), interval_text(prediction_interval(runs.value))]
        for task, own in final.groupby("task", sort=False)
        for name, runs in by_variant(own)
    ]
    return markdown_table(["task", "", "return of each seed", "mean, and where 95 % of further seeds end"], rows)


def _chosen(table: pd.DataFrame, column: str, names: Sequence[str] | None) -> pd.DataFrame:
    """Return the rows of some variants or tasks, in their order."""
    if names is None:
        return table
    check_names(table, column, names)
    return pd.concat([table[table[column] == name] for name in names], ignore_index=True)


def _random_returns(table: pd.DataFrame) -> dict[str, float]:
    random = shipped_returns()
    unknown = [task for task in dict.fromkeys(table.task) if task not in random]
    if unknown:
        raise ValueError(f"Random play is not known for {', '.join(unknown)}: report without a reference.")
    return random


def _styles(variants: Sequence[str]) -> dict[str, Style]:
    colours = [f"C{i}" for i in range(10)] + ["0.15", "0.5", "darkgoldenrod", "navy", "indigo", "teal"]
    return {name: {"color": colours[i % len(colours)]} for i, name in enumerate(variants)}


def _draw_finals(
    final: pd.DataFrame, scores: Mapping[str, Estimate], reference: str | None, styles: Mapping[str, Style]
) -> Figure:
    panels = []
    for task in dict.fromkeys(final.task):
        there = variants_of(final[final.task == task])
        panels.append(Panel(task_name(task), "return", ({name: estimate_of(final, name, task) for name in there},)))
    if scores:
        panels.append(Panel("all tasks", f"normalised IQM ({reference}: 1)", (scores,)))
    return draw_estimates(panels, styles)


def _divergence_text(table: pd.DataFrame) -> str:
    rows = [
        [task_name(task), name, *divergence_texts(runs)]
        for task, own in table.groupby("task", sort=False)
        for name, runs in by_variant(own)
    ]
    return markdown_table(["task", "", *DIVERGENCE_COLUMNS], rows)


def _training_text(table: pd.DataFrame, last: int) -> str:
    """Return a table of returns lost on the way, and of entropies at the end where they were measured."""
    drops = largest_drops(table, "train_return")
    measured = table.dropna(subset=["entropy"])
    entropies = final_evaluations(measured, last, "entropy") if len(measured) else drops.iloc[:0]
    rows = [
        [
            task_name(task),
            name,
            estimate_text(estimate_of(drops, name, task)),
            number_text(drops[(drops.variant == name) & (drops.task == task)].value.max()),
            estimate_text(estimate_of(entropies, name, task)),
        ]
        for task, own in table.groupby("task", sort=False)
        for name in variants_of(own)
    ]
    note = (
        "The largest drop is the most that the return of training episodes (the mean of 100) has fallen below its "
        "highest before, as a share of all that the run gained: mean over seeds, and the worst of them."
    )
    header = ["task", "", "largest drop", "of any seed", "entropy at the end (nats)"]
    return f"{markdown_table(header, rows)}\n\n{note}"


def _caption(table: pd.DataFrame, last: int) -> str:
    return (
        f"{runs_text(table)}. A run counts as the mean of its last {last} "
        "evaluations, with deterministic actions. Numbers are means over seeds ± half the 95 % interval (Student's t), "
        f"bands the same. {versions_text(table)}."
    )


def _seconds_text(table: pd.DataFrame) -> str:
    """Return a table of the time that training took, evaluations included."""
    ends = table.sort_values("step").groupby(["variant", "task", "seed"], sort=False).seconds.last().reset_index()
    tasks = list(dict.fromkeys(table.task))
    rows = []
    for name in variants_of(table):
        own = ends[ends.variant == name]
        values = [own[own.task == task].seconds / 60 for task in tasks]
        rows.append([name, *(estimate_text(mean_interval(x), 2) if len(x) else "–" for x in values)])
    note = "Minutes of wall-clock time; where seeds trained side by side, until all had finished."
    return f"{markdown_table(['minutes', *map(task_name, tasks)], rows)}\n\n{note}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Write the results of a study as a page: final returns, learning curves, how far updates moved."
    )
    parser.add_argument("results", type=Path, nargs="+", help="results.csv of a study, or its folder")
    parser.add_argument("--out", type=Path, help="folder of the page (default: that of the first results)")
    parser.add_argument("--last", type=int, default=5, help="evaluations whose mean is a final result (default: 5)")
    parser.add_argument("--reference", help="variant whose return is 1 in scores over tasks (random play is 0)")
    best = "a further variant NAME: on each task the best of those that follow"
    parser.add_argument("--best-of", nargs="+", action="append", default=[], metavar=("NAME", "VARIANT"), help=best)
    parser.add_argument("--variants", nargs="+", help="variants to report, in this order (default: all)")
    parser.add_argument("--tasks", nargs="+", help="tasks to report, in this order (default: all)")
    return parser
