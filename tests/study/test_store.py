"""The folders of a study: what is in them, and who may write there."""

import pytest

from sb3_trl.study import StudyError

from .cases import load


def test_the_files_of_a_run(undisturbed):
    folder = undisturbed.store.folder / "runs" / "TRPL_small_steps" / "Pendulum-v1"
    assert sorted(path.name for path in folder.iterdir()) == ["seed0", "seed1"]
    names = {path.name for path in (folder / "seed0").iterdir()}
    assert names == {"model.zip", "vecnormalize.pkl", "rows.csv", "run.json"}
    left = {path.name for path in undisturbed.store.folder.iterdir()}
    assert left == {"runs", "results.csv", ".lock"}


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
