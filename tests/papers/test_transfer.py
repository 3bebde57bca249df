"""Fig. 7 of the FixPO paper: what is drawn of runs that were made up, and what starts from what."""

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("rl_zoo3")

from sb3_trl.papers.item import Results
from sb3_trl.papers.metaworld import mean_curve
from sb3_trl.papers.scales import scaled_study
from sb3_trl.papers.transfer import MT10, TRANSFER_ITEMS

#: Success at the end, in %: FixPO's, of which PPO has half.
SUCCESS = {
    "{}": {"Reach": 80, "PickPlace": 40},
    "{} fine-tuned": {"Reach": 90, "PickPlace": 60},
    "{} back from Reach": {"PickPlace": 50},
    "{} back from PickPlace": {"PickPlace": 70},
}


@pytest.fixture
def table() -> pd.DataFrame:
    """Success has its value from the first row on; seeds are equal."""
    rows = [
        {"variant": variant.format(name), "task": f"sb3_trl/MetaWorld{task}-v0", "seed": seed, "step": step}
        | {"train_success": share * value / 100, "eval_success": share * value / 100}
        for name, share in (("FixPO", 1.0), ("PPO", 0.5))
        for variant, values in SUCCESS.items()
        for task, value in values.items()
        for seed in range(2)
        for step in (100, 200, 300)
    ]
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame):
    return TRANSFER_ITEMS["fixpo-fig7"].draw(Results(table, last=2))


def rows_of(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_the_tables(table):
    rows = rows_of(draw(table)[1])
    assert rows["success"] == ["FixPO", "FixPO fine-tuned", "PPO", "PPO fine-tuned"]
    assert [row.split(" ")[0] for row in rows["Reach"]] == ["80.0", "90.0", "40.0", "45.0"]
    assert rows["PickPlace"] == ["40.0 ± 0.0", "60.0 ± 0.0", "20.0 ± 0.0", "30.0 ± 0.0"]
    assert rows["success, back on PickPlace"] == ["FixPO", "PPO"]
    assert rows["from Reach"] == ["50.0 ± 0.0", "25.0 ± 0.0"]
    assert rows["from scratch"] == ["40.0 ± 0.0", "20.0 ± 0.0"]
    means = [line for line in draw(table)[1].splitlines() if line.startswith("| mean of all tasks")]
    assert [[cell.strip().split(" ")[0] for cell in line.split("|")[2:-1]] for line in means] == [
        ["60.0", "75.0", "30.0", "37.5"],
        ["60.0", "30.0"],
    ]


def test_the_curves(table):
    figure, _ = draw(table)
    (names, ends) = ([], [])
    for axis in figure.axes[:2]:
        names.append([line.get_label() for line in axis.lines])
        ends.append([round(100 * line.get_ydata()[-1], 6) for line in axis.lines])
    assert names == [["FixPO from scratch", "FixPO, transferred", "PPO from scratch", "PPO, transferred"]] * 2
    assert ends == [[60.0, 75.0, 30.0, 37.5], [40.0, 60.0, 20.0, 30.0]]
    assert [axis.get_title() for axis in figure.axes[2:4]] == ["Reach", "PickPlace"]
    assert [round(100 * line.get_ydata()[-1], 6) for line in figure.axes[2].lines] == [80.0, 90.0, 40.0, 45.0]


def test_what_is_not_there_yet_is_left_out(table):
    """With ``--read-only``, while the study trains."""
    rows = rows_of(draw(table[table.variant == "FixPO"])[1])
    assert rows["Reach"] == ["80.0 ± 0.0", "–", "–", "–"]
    assert rows["from Reach"] == ["–", "–"]


def test_nothing_is_known_of_a_trained_policy_before_its_first_row(table):
    tuned = table[table.variant == "FixPO fine-tuned"]
    curve = mean_curve(tuned, "step", points=3, is_new=False)
    np.testing.assert_allclose(curve.index, [100, 200, 300])
    np.testing.assert_allclose(curve["mean"], 0.75)
    np.testing.assert_allclose(mean_curve(tuned, "step", points=4)["mean"], [0, 0.75, 0.75, 0.75])


def test_what_starts_from_what(plans):
    for scale, tasks in (("paper", MT10), ("small", MT10), ("smoke", ("DrawerClose", "PickPlace"))):
        starts = {
            (run.variant, run.task): f"{run.start_from.variant} on {run.start_from.task}"
            for run in plans["fixpo_metaworld", scale].runs
            if run.start_from is not None
        }
        expected = {}
        pick = "sb3_trl/MetaWorldPickPlace-v0"
        for name in ("FixPO", "PPO"):
            for task in (f"sb3_trl/MetaWorld{task}-v0" for task in tasks):
                short = task.removeprefix("sb3_trl/MetaWorld").removesuffix("-v0")
                expected[f"{name} fine-tuned", task] = f"{name} on {pick}"
                expected[f"{name} back from {short}", pick] = f"{name} fine-tuned on {task}"
        assert starts == expected, scale


def test_a_scale_without_a_task_has_nothing_that_starts_from_it():
    methods = scaled_study("fixpo_metaworld", "smoke")["methods"]
    assert "FixPO back from DrawerClose" in methods
    assert "FixPO back from Push" not in methods
