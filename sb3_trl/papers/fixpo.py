"""The figures of the FixPO paper (Zentner et al., 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from sb3_trl.papers.item import Item, Results
from sb3_trl.papers.scales import Part
from sb3_trl.report.estimates import aggregate, by_variant, final_table, final_text, versions_text
from sb3_trl.report.figures import draw_curves
from sb3_trl.report.statistics import final_evaluations, mean_interval
from sb3_trl.report.tables import estimate_text, markdown_table, number_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIXPO_ITEMS"]

TASK = "Walker2d-v5"
COMPARED = {"FixPO": "C3", "TRPO": "C2", "PPO-clip": "0.15", "TRPL-KL": "C0"}
ABLATIONS = {
    "FixPO": "FixPO",
    "no fixup": "no fixup phase",
    "mean KL": "limit on the mean KL",
    "C_beta=1": "C_β = 1",
    "last epoch only": "fixup in the last epoch only",
    "constant beta": "constant β = 10",
}
MEMORY = {"FixPO": {"color": "C3"}, "PPO": {"color": "0.15"}}
TARGETS = {"C_beta=1": 1, "C_beta=2": 2, "FixPO": 3, "C_beta=10": 10}


def _fixup_steps(results: Results) -> tuple[Figure, str]:
    """The steps are 100 s / (1 - s) for every 100 steps of the primary phase, where s is the fixup phase's share."""
    table = results.table.assign(fixup_steps=100 * results.table.fixup_share / (1 - results.table.fixup_share))
    styles = {name: {"label": f"$C_\\beta$ = {target}"} for name, target in TARGETS.items()}
    label = "fixup steps per 100 primary steps"
    figure = draw_curves(table, "fixup_steps", label, styles, height=4.0)
    rows = [
        [f"C_β = {TARGETS[name]}", _whole(rows, "fixup_steps"), final_text(rows, "eval_return", results.last)]
        for name, rows in by_variant(table, TARGETS)
    ]
    return figure, markdown_table(["", f"{label}, mean over training", "return at the end"], rows) + (
        "\n\nAn update of the paper's has 160 primary steps."
    )


def _step_by_step(results: Results) -> tuple[Figure, str]:
    from matplotlib.figure import Figure

    from sb3_trl.papers.recording import draw_steps, fixpo_settings, fixup_steps, record, shown_updates
    from sb3_trl.study.rows import installed_versions

    bound = fixpo_settings(TASK)["kl_bound"]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    rows = []
    for axis, (target, updates) in zip(axes, {3.0: 2, 1.0: 1}.items(), strict=True):
        path = results.cache / f"fixpo-fig2-{target:g}.csv"
        if not path.is_file():
            if results.read_only:
                raise ValueError(f"{path}: there is no recording yet: repeat without --read-only.")
            recording = record(TASK, results.recording_steps, kl_target_coef=target)
            recording.assign(**installed_versions()).to_csv(path, index=False)
        history = pd.read_csv(path)
        shown = shown_updates(history, updates)
        draw_steps(axis, shown, bound, target)
        numbers = " and ".join(str(update + 1) for update in shown["update"].unique())
        axis.set_title(
            f"$C_\\beta$ = {target:g}: update{'s' * (updates > 1)} {numbers} of {history['update'].max() + 1}"
        )
        steps, kl = fixup_steps(history), history[history.kind == "fixup"].kl
        rows.append([f"C_β = {target:g}", number_text(steps.mean()), str(steps.max()), number_text(kl.max())])
    figure.legend(*_handles(axes[0]), loc="outside lower center", ncols=5, frameon=False)
    header = ["", "fixup steps of an update: mean", "most", "largest KL of a state in the fixup phase"]
    return figure, (
        f"{markdown_table(header, rows)}\n\n{TASK}, one seed, {results.recording_steps} steps each; the updates are "
        f"from the middle of training. ε_KL = {bound:g}. {versions_text(history)}."
    )


def _handles(axis: Any) -> tuple[list[Any], list[str]]:
    """Return the legend's entries of an axis and of the one that shares its place."""
    both = [
        other.get_legend_handles_labels()
        for other in (axis, *axis.figure.axes)
        if other.bbox.bounds == axis.bbox.bounds
    ]
    entries = {label: handle for handles, labels in both for handle, label in zip(handles, labels, strict=True)}
    return list(entries.values()), list(entries)


def _compared(results: Results) -> tuple[Figure, str]:
    styles = {name: {"color": colour} for name, colour in COMPARED.items()}
    _, text = aggregate(final_evaluations(results.table, results.last), "PPO-clip", results.random)
    return draw_curves(
        results.table, "eval_return", "return", styles
    ), f"{final_table(results.table, results.last)}\n\n{text}"


def _deviation(results: Results) -> tuple[Figure, str]:
    styles = {name: {"color": COMPARED[name]} for name in ("FixPO", "PPO-clip")}
    figure = draw_curves(results.table, "std", "mean standard deviation of an action", styles, height=4.0)
    rows = [
        [name, final_text(table, "std", results.last), final_text(table, "entropy", results.last)]
        for name, table in by_variant(results.table)
    ]
    return figure, markdown_table(["", "standard deviation at the end", "entropy at the end (nats)"], rows)


def _ablations(results: Results) -> tuple[Figure, str]:
    styles = {name: {"label": label.replace("C_β", "$C_\\beta$")} for name, label in ABLATIONS.items()}
    styles["FixPO"]["color"] = "black"
    figure = draw_curves(results.table, "eval_return", "return", styles)
    rows = [
        [ABLATIONS[name], number_text(table.kl_max.max()), number_text(100 * table.fixup_share.mean())]
        for name, table in by_variant(results.table, ABLATIONS)
    ]
    header = ["", "largest KL(acting ‖ old) of a state", "fixup steps, % of all gradient steps"]
    return figure, f"{final_table(results.table, results.last, ABLATIONS)}\n\n{markdown_table(header, rows)}"


def _memory(results: Results) -> tuple[Figure, str]:
    figure = draw_curves(results.table, "eval_return", "return", MEMORY)
    rows = [
        [name, number_text(table.kl_max.max()), _share(table.fixup_share), _share(table.violation_fraction)]
        for name, table in by_variant(results.table)
    ]
    header = ["", "largest KL(acting ‖ old) of a step", "fixup steps, % of all", "steps outside the bound, %"]
    return figure, (
        f"{final_table(results.table, results.last)}\n\n{markdown_table(header, rows)}\n\nThe paper's tasks, of "
        "DMLab-30, are not to be had as a Python package; these stand in their place. As there, FixPO has the "
        "hyperparameters of PPO (sb3-contrib's RecurrentPPO, with this package's rollouts) but for its own."
    )


def _share(values: pd.Series) -> str:
    """Return a mean share in per cent, nothing where there is none."""
    return "" if values.isna().all() else number_text(100 * values.mean())


def _whole(table: pd.DataFrame, key: str) -> str:
    """Return a column's mean over training."""
    return estimate_text(mean_interval(table.groupby("seed")[key].mean()))


_TARGETS = Part("fixpo_mujoco", tuple(TARGETS), (TASK,))

FIXPO_ITEMS = {
    "fixpo-fig1": Item("FixPO, Fig. 1: fixup steps for several C_β", (_TARGETS,), _fixup_steps),
    "fixpo-fig2": Item("FixPO, Fig. 2: largest KL and β, gradient step by gradient step", (), _step_by_step, 2),
    "fixpo-fig3": Item("FixPO, Fig. 3: learning curves", (Part("fixpo_mujoco", tuple(COMPARED)),), _compared),
    "fixpo-fig4": Item(
        "FixPO, Fig. 4: standard deviation of the actions, beside PPO's",
        (Part("fixpo_mujoco", ("FixPO", "PPO-clip"), ("Walker2d-v5",)),),
        _deviation,
    ),
    "fixpo-fig5": Item(
        "FixPO, Fig. 5: ablations",
        (Part("fixpo_mujoco", tuple(ABLATIONS), ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")),),
        _ablations,
    ),
    "fixpo-fig8": Item(
        "FixPO, Fig. 8: memory and pictures, in other tasks than the paper's",
        (Part("fixpo_memory", tuple(MEMORY)),),
        _memory,
    ),
}
