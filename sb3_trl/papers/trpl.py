"""The tables and figures of the TRPL paper (Otto et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sb3_trl.papers.item import Item, Results
from sb3_trl.papers.scales import FOLDER, Part
from sb3_trl.report.estimates import (
    DIVERGENCE_COLUMNS,
    aggregate,
    by_variant,
    divergence_texts,
    estimate_of,
    final_table,
    final_text,
    variants_of,
)
from sb3_trl.report.figures import Panel, draw_curves, draw_estimates, task_name
from sb3_trl.report.statistics import Estimate, evaluations_after, final_evaluations
from sb3_trl.report.tables import estimate_text, markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TRPL_ITEMS"]

COLOURS = {"FROB": "C0", "W2": "C2", "KL": "C3", "PAPI": "C1", "PPO": "0.15", "PPO-M": "0.6"}
PROJECTIONS, BASELINES = ("FROB", "W2", "KL"), ("PAPI", "PPO-M", "PPO")
ENTROPY = tuple(f"{name}-E" for name in PROJECTIONS)
TABLE_1 = (PROJECTIONS, BASELINES, ENTROPY)
REACHER = (*(f"{name}{suffix}" for name in (*PROJECTIONS, "PPO", "PPO-M") for suffix in ("", "-C")), "PAPI")
WEIGHTS = ("alpha=0.5", "alpha=2", "alpha=8", "alpha=32", "regression")


def _table_1(results: Results) -> tuple[Figure, str]:
    early, final = _early_and_final(results)
    sections = [_table_1_text(early, final)]
    aggregates, text = aggregate(final, "PPO", results.random)
    sections.append(text)
    sections.append(f"The paper's, for orientation (older tasks, v2; 40 seeds):\n\n{_paper_table()}")
    return _draw_table_1(early, final, aggregates), "\n\n".join(sections)


def _early_and_final(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    return evaluations_after(results.table, 0.2, results.last), final_evaluations(results.table, results.last)


def _table_1_text(early: pd.DataFrame, final: pd.DataFrame) -> str:
    """Return the table; the best of the methods with and of those without entropy control are bold."""
    tasks = list(dict.fromkeys(final.task))
    columns = [(task, rows) for task in tasks for rows in (early, final)]
    header = ["", *(_column_name(task, rows is final) for task, rows in columns)]
    lines = []
    for group in ((*PROJECTIONS, *BASELINES), ENTROPY):
        cells = [{name: estimate_of(rows, name, task) for name in group} for task, rows in columns]
        best = [_best({name: estimate.value for name, estimate in column.items()}) for column in cells]
        for name in group:
            texts = [estimate_text(column[name], bold=name == first) for column, first in zip(cells, best, strict=True)]
            lines.append([name, *texts])
    return markdown_table(header, lines)


def _best(values: dict[str, float]) -> str | None:
    """Return the name of the largest value; those that are missing do not count."""
    present = {name: value for name, value in values.items() if np.isfinite(value)}
    return max(present, key=present.__getitem__) if present else None


def _paper_table() -> str:
    paper = pd.read_csv(FOLDER / "trpl_table1.csv")
    columns = [(task, share) for task in dict.fromkeys(paper.task) for share in (0.2, 1.0)]
    header = ["", *(_column_name(task, share == 1) for task, share in columns)]
    texts = paper["mean"].astype(str) + " ± " + paper.half_width.astype(str)
    rows = [[method, *texts[paper.method == method]] for method in dict.fromkeys(paper.method)]
    return markdown_table(header, rows)


def _column_name(task: str, is_final: bool) -> str:
    return f"{task}, {'final' if is_final else '20 %'}"


def _draw_table_1(early: pd.DataFrame, final: pd.DataFrame, aggregates: Mapping[str, Estimate]) -> Figure:
    """Draw the table's estimates: hollow after 20 % of the steps, full at the end; the last panel is over all tasks."""
    order = variants_of(final)

    def panel(task: str) -> Panel:
        series = [{name: estimate_of(rows, name, task) for name in order} for rows in (early, final)]
        return Panel(task_name(task), "return", tuple(series))

    panels = [panel(task) for task in dict.fromkeys(final.task)]
    if aggregates:
        panels.append(Panel("all tasks", "normalised IQM (PPO: 1)", (aggregates,)))
    return draw_estimates(panels, _styles(tuple(order)), ["after 20 % of the steps", "final"])


def _interpolations(_: Results) -> tuple[Figure, str]:
    from sb3_trl.papers.interpolation import draw_interpolations

    return draw_interpolations(), (
        "Between two Gaussians of equal entropy (a rotation by 60°), Frobenius and Wasserstein projections pass "
        "through larger entropies and the KL projection through smaller ones. No training."
    )


def _mean_kl(results: Results) -> tuple[Figure, str]:
    figure = draw_curves(
        results.table, "kl_mean", "mean KL(acting ‖ old) (nats)", _styles((*PROJECTIONS, *BASELINES)), height=4.2
    )
    rows = [[name, *divergence_texts(table)] for name, table in by_variant(results.table)]
    return figure, markdown_table(["", *DIVERGENCE_COLUMNS], rows)


def _distance(results: Results) -> tuple[Figure, str]:
    styles = {
        weight: {
            "label": weight.replace("alpha=", "α = ") if weight != "regression" else "full regression (α = 0)",
            "color": "black" if weight == "regression" else f"C{number}",
        }
        for number, weight in enumerate(WEIGHTS)
    }
    figure = draw_curves(
        results.table,
        "mean_distance",
        "Mahalanobis distance² of the means",
        styles,
        lines={"mean bound $\\epsilon_\\mu$": 0.03},
        height=4.2,
    )
    rows = [
        [
            styles[name]["label"],
            final_text(table, "mean_distance", results.last),
            final_text(table, "eval_return", results.last),
        ]
        for name, table in by_variant(results.table)
    ]
    return figure, markdown_table(["", "distance² at the end (bound 0.03)", "return at the end"], rows)


def _returns(variants: tuple[str, ...]) -> Callable[[Results], tuple[Figure, str]]:
    def draw(results: Results) -> tuple[Figure, str]:
        return draw_curves(results.table, "eval_return", "return", _styles(variants)), final_table(
            results.table, results.last
        )

    return draw


def _reacher(results: Results) -> tuple[Figure, str]:
    figure = draw_curves(results.table, "eval_return", "return", _styles(REACHER), height=4.4)
    return (
        figure,
        f"{final_table(results.table, results.last)}" + "\n\n-C, dashed: covariances that depend on the state.",
    )


def _style(variant: str) -> dict[str, Any]:
    """Return a method's colour; contextual covariances are dashed."""
    name = variant.removesuffix("-E").removesuffix("-C")
    return {"color": COLOURS[name], "linestyle": "--" if variant.endswith("-C") else "-"}


def _styles(variants: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    return {variant: _style(variant) for variant in variants}


_MUJOCO = tuple(method for group in TABLE_1 for method in group)

TRPL_ITEMS = {
    "trpl-table1": Item(
        "TRPL, Table 1: returns after 20 % of training and at its end",
        (Part("trpl_mujoco", _MUJOCO), Part("trpl_humanoid", _MUJOCO)),
        _table_1,
    ),
    "trpl-fig1": Item("TRPL, Fig. 1: interpolated covariances and their entropies (no training)", (), _interpolations),
    "trpl-fig2-left": Item(
        "TRPL, Fig. 2 left: mean KL of an update on Ant, all methods",
        (Part("trpl_mujoco", (*PROJECTIONS, *BASELINES), ("Ant-v5",)),),
        _mean_kl,
    ),
    "trpl-fig2-centre": Item(
        "TRPL, Fig. 2 centre: how far the means move for several α, and with full regression",
        (Part("trpl_regression", WEIGHTS),),
        _distance,
    ),
    "trpl-fig2-right": Item(
        "TRPL, Fig. 2 right: 5-link reacher, covariances with and without context",
        (Part("trpl_reacher", REACHER),),
        _reacher,
    ),
    "trpl-fig4": Item(
        "TRPL, Fig. 4: learning curves",
        tuple(Part(study, (*PROJECTIONS, "PAPI", "PPO")) for study in ("trpl_mujoco", "trpl_humanoid")),
        _returns((*PROJECTIONS, "PAPI", "PPO")),
    ),
    "trpl-fig5": Item(
        "TRPL, Fig. 5: learning curves with entropy control",
        tuple(Part(study, (*ENTROPY, "PAPI", "PPO")) for study in ("trpl_mujoco", "trpl_humanoid")),
        _returns((*ENTROPY, "PAPI", "PPO")),
    ),
}
