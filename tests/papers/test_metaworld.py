"""Fig. 6 of the FixPO paper: what is drawn of runs that were made up."""

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("rl_zoo3")

from sb3_trl.papers.item import Results
from sb3_trl.papers.metaworld import METAWORLD_ITEMS, mean_curve

TASKS = {"sb3_trl/MetaWorldReach-v0": 1.0, "sb3_trl/MetaWorldPush-v0": 0.5}


@pytest.fixture
def table() -> pd.DataFrame:
    """Success rises in proportion to steps, to 1 on one task and to a half on the other; PPO takes twice the time."""
    rows = [
        {"variant": variant, "task": task, "seed": seed, "step": step, "seconds": pace * step, "n_steps": 400}
        | {"train_success": most * step / 400, "eval_success": most * step / 400, "eval_return": 0.0}
        for variant, pace in (("FixPO", 9.0), ("PPO", 18.0))
        for task, most in TASKS.items()
        for seed in range(2)
        for step in (100, 200, 300, 400)
    ]
    return pd.DataFrame(rows)


def test_means_over_runs(table):
    curve = mean_curve(table[table.variant == "FixPO"], "step", points=5)
    np.testing.assert_allclose(curve.index, [0, 100, 200, 300, 400])
    np.testing.assert_allclose(curve["mean"], 0.75 * np.arange(5) / 4)
    np.testing.assert_allclose(curve.error, np.std([1, 1, 0.5, 0.5], ddof=1) / 2 * np.arange(5) / 4)


def test_hours_end_where_the_first_run_does(table):
    slow = table.assign(seconds=table.seconds * (1 + table.seed))
    curve = mean_curve(slow[slow.variant == "PPO"], "seconds", points=3)
    np.testing.assert_allclose(curve.index, [0, 3600, 7200])
    np.testing.assert_allclose(curve["mean"], [0, 0.75 * (0.5 + 0.25) / 2, 0.75 * (1 + 0.5) / 2])


def test_one_run_has_no_error_and_none_no_curve(table):
    one = table[(table.variant == "PPO") & (table.seed == 0) & (table.task == "sb3_trl/MetaWorldPush-v0")]
    assert mean_curve(one, "step").error.isna().all()
    assert mean_curve(one.assign(train_success=np.nan), "step").empty


def test_what_is_not_there_yet_is_left_out(table):
    """With ``--read-only``, while the study trains."""
    first = table[(table.variant == "FixPO") | (table.task == "sb3_trl/MetaWorldReach-v0")]
    _, text = METAWORLD_ITEMS["fixpo-fig6"].draw(Results(first, last=2))
    assert "| MetaWorldPush-v0 | 43.8 ± 0.0 | – |" in text
    assert "| mean of all tasks | **65.6** ± 0.0 | – |" in text


def test_the_figure_and_its_table(table):
    figure, text = METAWORLD_ITEMS["fixpo-fig6"].draw(Results(table, last=2))
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for line in text.splitlines()
        if (cells := line.split("|"))[1:]
    }
    assert rows["success"] == ["FixPO", "PPO"]
    assert rows["MetaWorldReach-v0"] == ["87.5 ± 0.0"] * 2
    assert rows["mean of all tasks"] == ["**65.6** ± 0.0"] * 2
    assert rows["hours of a run"] == ["1.00 ± 0.00", "2.00 ± 0.00"]
    steps, hours = figure.axes
    assert [line.get_label() for line in steps.lines] == ["FixPO", "PPO"]
    assert [line.get_xdata()[-1] for line in hours.lines] == [1.0, 2.0]
    assert [line.get_ydata()[-1] for line in hours.lines] == [0.75, 0.75]
