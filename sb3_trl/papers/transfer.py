"""Figure 7 of the FixPO paper (Zentner et al., 2023): from pick-place to MT10's tasks, and from each of them back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from sb3_trl.papers.item import Item, Results
from sb3_trl.papers.metaworld import draw_success, mean_curve
from sb3_trl.papers.scales import Part
from sb3_trl.report.estimates import estimate_of
from sb3_trl.report.statistics import ALL_TASKS, final_evaluations, means_over_tasks
from sb3_trl.report.tables import estimate_text, markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["TRANSFER_ITEMS"]

METHODS = {"FixPO": "C3", "PPO": "0.15"}
START = "PickPlace"
MT10 = (
    "Reach",
    "Push",
    START,
    "DoorOpen",
    "DrawerOpen",
    "DrawerClose",
    "ButtonPressTopdown",
    "PegInsertSide",
    "WindowOpen",
    "WindowClose",
)
COLUMNS = 5


def _transfer(results: Results) -> tuple[Figure, str]:
    from matplotlib.figure import Figure

    table = _by_stage(results.table)
    tasks = [task for task in MT10 if task in set(table.task)]
    rows, columns = -(-len(tasks) // COLUMNS), min(len(tasks), COLUMNS)
    figure = Figure(figsize=(11, 4.0 + 2.3 * rows), layout="constrained")
    [above], [below] = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.6, 2.3 * rows])
    to, back = above.subplots(1, 2, sharey=True)
    _draw(to, table, ("new", "fine-tuned"))
    _draw(back, pd.concat([table[table.stage == "back"], _of(table, "new", START)]), ("new", "back"))
    to.set(title="fine-tuned: all tasks", xlabel="environment steps (millions)", ylabel="success in training")
    back.set(title=f"back on {START}, from all tasks", xlabel="environment steps (millions)")
    panels = below.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, task in zip(panels, tasks, strict=False):
        _draw(panel, table[table.task == task], ("new", "fine-tuned"))
        panel.set_title(task, fontsize="medium")
    for panel in panels[len(tasks) :]:
        panel.axis("off")
    figure.legend(*to.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure, _text(table, tasks, results.last)


def _by_stage(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a column ``stage``; ``variant`` is the algorithm, ``task`` where it comes back from."""
    task = table.task.str.replace(r"^.*/MetaWorld|-v0$", "", regex=True)
    labels = table.variant.str.extract(r"^(?P<variant>\S+)(?: (?P<stage>fine-tuned|back))?(?: from (?P<origin>\S+))?$")
    return table.assign(variant=labels.variant, stage=labels.stage.fillna("new"), task=labels.origin.fillna(task))


def _of(table: pd.DataFrame, stage: str, task: str) -> pd.DataFrame:
    return table[(table.stage == stage) & (table.task == task)]


def _draw(axis: Axes, table: pd.DataFrame, stages: Iterable[str]) -> None:
    """Draw the mean success of the runs of each stage: dashed those of new models, and solid the others."""
    for name, color in METHODS.items():
        for stage in stages:
            curve = mean_curve(table[(table.variant == name) & (table.stage == stage)], "step", is_new=stage == "new")
            label, line = (f"{name} from scratch", "--") if stage == "new" else (f"{name}, transferred", "-")
            draw_success(axis, curve, 1e6, color=color, label=label, linestyle=line)


def _text(table: pd.DataFrame, tasks: list[str], last: int) -> str:
    """Return tables of final successes: on each task from scratch and fine-tuned, and back from each."""
    final = {stage: _final(own, last) for stage, own in table.groupby("stage")}
    columns = {f"{name}{' fine-tuned' * tuned}": (name, tuned) for name in METHODS for tuned in (False, True)}

    def row(title: str, task: str, of: Mapping[str, pd.DataFrame]) -> list[str]:
        values = [(of.get("fine-tuned" if tuned else "new"), name) for name, tuned in columns.values()]
        return [title, *(_cell(scores, name, task) for scores, name in values)]

    means = {stage: means_over_tasks(scores) for stage, scores in final.items()}
    there = [row(task, task, final) for task in tasks] + [row("mean of all tasks", ALL_TASKS, means)]
    home = [[f"from {task}", *(_cell(final.get("back"), name, task) for name in METHODS)] for task in tasks]
    home.append(["mean of all tasks", *(_cell(means.get("back"), name, ALL_TASKS) for name in METHODS)])
    home.append(["from scratch", *(_cell(final.get("new"), name, START) for name in METHODS)])
    return (
        "Success in training, of the last hundred episodes, with the noise of exploration; bands are standard errors "
        f"over runs. Solid: what was learned on {START} goes on on every task, {START} too, and what comes of that "
        f"goes on on {START}. Dashed: from scratch, which the paper does not show.\n\n"
        f"{markdown_table(['success', *columns], there)}\n\n"
        f"{markdown_table([f'success, back on {START}', *METHODS], home)}\n\n"
        "In %, of the last evaluations, without noise: an episode with success in any of its steps."
    )


def _final(table: pd.DataFrame, last: int) -> pd.DataFrame:
    final = final_evaluations(table, last, "eval_success")
    return final.assign(value=100 * final.value)


def _cell(scores: pd.DataFrame | None, name: str, task: str) -> str:
    return "–" if scores is None else estimate_text(estimate_of(scores, name, task))


def _id(task: str) -> str:
    return f"sb3_trl/MetaWorld{task}-v0"


_STUDY = "fixpo_metaworld"
_THERE = tuple(f"{name}{tuned}" for tuned in ("", " fine-tuned") for name in METHODS)
_BACK = tuple(f"{name} back from {task}" for name in METHODS for task in MT10)

TRANSFER_ITEMS = {
    "fixpo-fig7": Item(
        "FixPO, Fig. 7: transfer in Meta-World, from pick-place to MT10's tasks, and back",
        (Part(_STUDY, _THERE, tuple(map(_id, MT10))), Part(_STUDY, _BACK, (_id(START),))),
        _transfer,
    ),
}
