"""The folders of a study: what is in them, and who may write there."""

import csv
import shutil

import pytest

from sb3_trl.study import StudyError
from sb3_trl.study.rows import COLUMNS, LATER_COLUMNS

from .cases import load, table


def test_the_files_of_a_run(undisturbed):
    folder = undisturbed.store.folder / "runs" / "TRPL_small_steps" / "Pendulum-v1"
    assert sorted(path.name for path in folder.iterdir()) == ["seed0", "seed1"]
    names = {path.name for path in (folder / "seed0").iterdir()}
    assert names == {"model.zip", "vecnormalize.pkl", "rows.csv", "run.json"}
    left = {path.name for path in undisturbed.store.folder.iterdir()}
    assert left == {"runs", "results.csv", ".lock", ".plan.csv"}


def test_what_was_being_moved_is_moved_and_what_was_being_written_is_removed(undisturbed, tmp_path):
    study = load(tmp_path)
    study.store.folder.mkdir()
    first, second, *_ = study.runs
    for run, name in ((first, ".finishedabc"), (second, ".writingabc")):
        folder = study.store.folder / name / study.store.path(run).relative_to(study.store.folder)
        folder.mkdir(parents=True)
        for path in undisturbed.store.path(run).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    study.store.recover()
    assert study.finished == [first]
    assert [path.name for path in study.store.folder.iterdir()] == ["runs"]


def test_two_processes_do_not_share_a_folder(tmp_path):
    study, other = load(tmp_path), load(tmp_path)
    with study.store, pytest.raises(StudyError, match="Another process is at work"):
        other.run(jobs=1)


@pytest.fixture
def begun_before(undisturbed, tmp_path):
    """A study whose first run was trained by a version that knew no successes."""
    study = load(tmp_path)
    shutil.copytree(undisturbed.store.folder, study.store.folder)
    path = study.store.path(study.runs[0]) / "rows.csv"
    rows = list(csv.DictReader(path.open()))
    columns = [name for name in COLUMNS[1:] if name not in LATER_COLUMNS]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return study


def test_a_study_that_an_earlier_version_began_goes_on(undisturbed, begun_before):
    without = ("seconds", "resumed")
    before = table(undisturbed.store.folder, without)
    begun_before.store.results.unlink()
    assert begun_before.finished == [*begun_before.runs]
    assert begun_before.run(jobs=1) == []
    assert table(begun_before.store.folder, without) == before
    assert begun_before.results().resumed.isna().tolist() == [True] * 2 + [False] * 10
    assert begun_before.results().eval_return.notna().all()


def test_runs_with_columns_of_their_own_are_refused(begun_before):
    path = begun_before.store.path(begun_before.runs[0]) / "rows.csv"
    path.write_text(path.read_text().replace("entropy", "disorder"))
    with pytest.raises(StudyError, match="other columns than this version's: remove that folder"):
        begun_before.store.write_results("small", begun_before.runs)
