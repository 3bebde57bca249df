"""Studies: what survives an interruption, a change or a failure."""

import os
import signal
import subprocess
import sys
import time

import pytest

from sb3_trl.study import Selection, Study, StudyError

from .cases import ONE, is_of, load, modified, table

COMMAND = [sys.executable, "-u", "-m", "sb3_trl.cli", "study", "small.yml"]


# --- interruptions ---


@pytest.fixture
def start(tmp_path):
    """Start the command in a process group of its own, as a terminal does; nothing of it outlives the test."""
    started = []

    def call() -> subprocess.Popen:
        process = subprocess.Popen(
            [*COMMAND, "--out", "out", "--jobs", "2", "--no-seed-batch"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in the background
        )
        started.append(process)
        return process

    yield call
    for process in started:
        if exists(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def interrupt(process: subprocess.Popen) -> tuple[int, str]:
    """Press Ctrl-C when the first run has finished, and return the exit status and the last words."""
    for line in process.stdout:
        if line.startswith("["):
            break
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=300)
    return process.returncode, printed


def test_an_interrupted_study_goes_on(undisturbed, tmp_path, start):
    """Ctrl-C, which all of its processes get; what a killed one leaves is looked at in test_checkpoint.py."""
    study = load(tmp_path)
    code, printed = interrupt(start())
    assert code == 130
    before = modified(study)
    assert 1 <= len(study.finished) < len(study.runs)
    assert f"Interrupted. {len(study.finished)} of 6 runs have finished" in printed
    assert "Traceback" not in printed
    assert table(study.store.folder) == [row for row in table(undisturbed.store.folder) if is_of(row, study.finished)]
    assert study.run(jobs=1, seed_batch=False) == []
    assert modified(study).items() >= before.items(), "what had finished was not done again"
    assert table(study.store.folder) == table(undisturbed.store.folder)


def test_the_workers_of_a_killed_study_end(tmp_path, start):
    """They would train on for hours otherwise."""
    load(tmp_path, ONE.replace("n_timesteps: 64", "n_timesteps: 1000000"))
    process = start()
    status = tmp_path / "out" / ".running"
    while not (status.is_dir() and len(list(status.iterdir())) == 2):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    process.kill()
    process.communicate(timeout=300)
    deadline = time.monotonic() + 120
    while exists(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not exists(process.pid)


def exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_nothing_is_done_twice(undisturbed):
    before = modified(undisturbed)
    assert undisturbed.jobs() == []
    assert undisturbed.run(jobs=1) == []
    assert modified(undisturbed) == before


# --- changes ---


def test_runs_whose_settings_have_changed_are_not_taken_for_finished(tmp_path):
    study = load(tmp_path, ONE)
    study.run(jobs=1)
    before = modified(study)
    changed = load(tmp_path, ONE.replace("n_steps: 64", "n_steps: 32", 1))
    message = r"small.yml:9: A on Pendulum-v1, seed 0 was trained with other settings: n_steps 64, now 32. .*--rerun"
    with pytest.raises(StudyError, match=message):
        changed.run(jobs=1)
    broken = load(tmp_path, ONE.replace("n_steps: 64", "n_steps: 16", 1))
    with pytest.raises(StudyError, match="batch_size=32 is larger than the rollout"):
        broken.run(jobs=1, rerun_changed=True)
    assert modified(changed) == before
    assert changed.run(jobs=1, rerun_changed=True) == []
    after = modified(changed)
    assert {path for path in before if after[path] != before[path]} == {path for path in before if "/A/" in str(path)}
    assert changed.run(jobs=1) == []


def test_methods_and_seeds_can_be_added(tmp_path):
    load(tmp_path, ONE).run(jobs=1)
    study = load(tmp_path, ONE.replace("seeds: 1", "seeds: [5, 0]").replace("  B:", "  C: {algo: trpl}\n  B:"))
    assert [str(run) for run in study.finished] == ["A on Pendulum-v1, seed 0", "B on Pendulum-v1, seed 0"]
    study.store.write_results("renamed", study.runs)
    assert [row["study"] for row in table(study.store.folder)] == ["renamed", "renamed"]


def test_the_table_keeps_the_runs_that_are_not_trained_again(tmp_path):
    assert load(tmp_path, ONE).run(jobs=1) == []
    before = table(tmp_path / "out")
    changed = ONE.replace("seeds: 1", "seeds: 2")
    (tmp_path / "small.yml").write_text(changed)
    study = Study.load(tmp_path / "small.yml", tmp_path / "out", selection=Selection(variant=["B"], seed=[1]))
    assert study.run(jobs=1) == []
    assert {str(run) for run in study.finished} == {
        f"{variant} on Pendulum-v1, seed {seed}" for variant, seed in ("A0", "B0", "B1")
    }
    assert [row for row in table(tmp_path / "out") if row["seed"] == "0"] == before


# --- failures ---


@pytest.mark.parametrize("seed_batch", [False, True])
def test_a_run_that_fails_does_not_stop_the_others(tmp_path, failing, seed_batch):
    text = (
        ONE.replace("Pendulum-v1", failing)
        .replace("seeds: 1", "seeds: 2")
        .replace("n_timesteps: 64", "n_timesteps: 128")
    )
    study = load(tmp_path, text)
    failed = study.run(jobs=1, seed_batch=seed_batch)
    assert [str(run) for run in failed] == [f"A on {failing}, seed 1", f"B on {failing}, seed 1"]
    assert [run.seed for run in study.finished] == [0, 0]
    assert {row["seed"] for row in table(study.store.folder)} == {"0"}
    error = study.store.error_path(failed[0]).read_text()
    assert "RuntimeError: the simulator broke" in error
    assert "in step" in error
