"""Which runs are one job: seeds train together where that pays."""

import json

import pytest

pytest.importorskip("rl_zoo3")

from sb3_trl.study import Study

from .cases import LONG


def sizes(study: Study, seed_batch: bool | None) -> dict[str, list[int]]:
    """Return the number of seeds of each job, by method."""
    found: dict[str, list[int]] = {}
    for job in study.jobs(seed_batch):
        assert len({(run.variant, run.task) for run in job.runs}) == 1
        found.setdefault(job.runs[0].variant, []).append(len(job.runs))
    return found


def test_seeds_train_together_where_that_pays(load):
    study = load(LONG)
    assert sizes(study, None) == {"TRPL": [10, 2], "full": [1] * 12, "PPO": [1] * 24}
    assert sizes(study, False) == {"TRPL": [1] * 12, "full": [1] * 12, "PPO": [1] * 24}
    assert sizes(load(LONG.replace("1000000", "25000")), None)["TRPL"] == [10, 1, 1], "it pays for ten, not for two"
    short = load(LONG.replace("1000000", "5000").replace("methods", "eval_freq: 1000\nmethods"))
    assert sizes(short, None)["TRPL"] == [1] * 12
    assert sizes(short, True)["TRPL"] == [10, 2]
    assert [job.compile for job in study.jobs(True) + short.jobs(True) if len(job.runs) > 1] == [True] * 2 + [False] * 2


def test_which_seeds_train_together_does_not_depend_on_what_has_finished(load):
    study = load(LONG)
    for run in study.runs[:10]:
        study.store.path(run).mkdir(parents=True)
        (study.store.path(run) / "run.json").write_text(json.dumps(run.settings))
    assert [job.runs for job in study.jobs() if job.runs[0].variant == "TRPL"] == [study.runs[10:12]]
    assert len(study.finished) == 10
