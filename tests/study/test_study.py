"""Studies: their runs are those of ``sb3-trl train``, their table, and what survives an interruption."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch as th
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.vec_env import VecNormalize
from support import ROOT, PointEnv, event_file, vec_env

from sb3_trl import __version__
from sb3_trl.study import Selection, Study, StudyError
from sb3_trl.study.rows import COLUMNS

#: Every run takes a second or less.
SMALL = """\
tasks: [Pendulum-v1]
seeds: 2
n_timesteps: 512
eval_freq: 128
n_eval_episodes: 2
methods:
  TRPL, small steps:
    algo: trpl
    params:
      {n_envs: 2, n_steps: 32, batch_size: 32, n_epochs: 2, n_critic_epochs: 2, learning_rate: 1e-3, mean_bound: 0.001}
  PPO:
    algo: ppo
    conf_file: ppo_paper.yml
    params: {n_steps: 64, batch_size: 32, n_epochs: 2}
  FixPO:
    algo: fixpo
    params: {n_envs: 2, n_steps: 32, batch_size: 32, n_epochs: 2, learning_rate: 1e-2, kl_bound: 0.01}
"""
COMMAND = [sys.executable, "-u", "-m", "sb3_trl.cli", "study", "small.yml"]


def table(path: Path, without: tuple[str, ...] = ("seconds",)) -> list[dict[str, str]]:
    """Return the rows of a study's results without some columns."""
    with (path / "results.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in without} for row in csv.DictReader(file)]


def load(folder: Path, text: str = SMALL, out: str = "out") -> Study:
    (folder / "small.yml").write_text(text)
    return Study.load(folder / "small.yml", folder / out)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The small study, trained run by run in this process, in which torch's threads are the caller's afterwards."""
    study, threads = load(tmp_path_factory.mktemp("undisturbed")), th.get_num_threads()
    th.set_num_threads(threads + 1)
    assert study.run(jobs=1, seed_batch=False) == []
    assert th.get_num_threads() == threads + 1
    th.set_num_threads(threads)
    return study


# --- the table ---


def test_columns(undisturbed):
    rows = pd.read_csv(undisturbed.store.results)
    assert tuple(rows.columns) == COLUMNS
    assert set(rows.study) == {"small"}
    assert (rows.sb3_trl == __version__).all()
    assert (rows.torch == th.__version__).all()
    assert (rows.gymnasium == gym.__version__).all()
    keys = rows[["algorithm", "variant", "task", "seed", "step"]].itertuples(index=False, name=None)
    methods = [("trpl", "TRPL, small steps"), ("ppo", "PPO"), ("fixpo", "FixPO")]
    steps = (128, 256, 384, 512)
    expected = [(*method, "Pendulum-v1", seed, step) for method in methods for seed in (0, 1) for step in steps]
    assert list(keys) == expected
    pd.testing.assert_frame_equal(undisturbed.results(), rows)


def test_what_each_algorithm_logs(undisturbed):
    rows = undisturbed.results().set_index("algorithm")
    later = rows[rows.step > 128]  # at 128 no episode had ended
    always = ["eval_return", "eval_return_std", "kl_mean", "kl_spread", "kl_max", "entropy", "std", "seconds"]
    assert rows[always].notna().all(axis=None)
    assert later.loc[["ppo"], "train_return"].notna().all()
    filled = {name: set(own.columns[own.notna().all()]) for name, own in rows.groupby(level=0)}
    own = {"mean_distance", "cov_distance", "violation_fraction", "projected_fraction", "beta", "fixup_share"}
    assert filled["ppo"] & own == set()
    assert filled["trpl"] & own == own - {"beta", "fixup_share"}
    assert filled["fixpo"] & own == {"violation_fraction", "beta", "fixup_share"}
    assert (rows.kl_max >= rows.kl_mean).all()
    assert (rows.kl_spread > 0).sum() > len(rows) / 2
    assert (later.loc["trpl"].projected_fraction > 0).any()
    assert (later.loc["fixpo"].fixup_share > 0).any()
    assert (rows.eval_return < 0).all()
    assert rows.seconds.between(0, 600).all()


def test_the_files_of_a_run(undisturbed):
    folder = undisturbed.store.folder / "runs" / "TRPL_small_steps" / "Pendulum-v1"
    assert sorted(path.name for path in folder.iterdir()) == ["seed0", "seed1"]
    names = {path.name for path in (folder / "seed0").iterdir()}
    assert names == {"model.zip", "vecnormalize.pkl", "rows.csv", "run.json"}
    left = {path.name for path in undisturbed.store.folder.iterdir()}
    assert left == {"runs", "results.csv", ".lock"}


# --- a run is a training of sb3-trl train ---


@pytest.mark.parametrize("method", [0, 1, 2])
def test_a_run_is_what_train_does(run, undisturbed, tmp_path, method):
    own = undisturbed.plan.groups[method].runs[1]
    params = own.hyperparameters
    words = [f"{key}:{params[key]}" for key in undisturbed.plan.description.methods[method].params]
    conf_file = "--conf-file ppo_paper.yml " if own.algorithm == "ppo" else ""
    line = (
        f"train --algo {own.algorithm} {conf_file}--env Pendulum-v1 -n 512 --eval-freq 128 --eval-episodes 2 --seed 1"
    )
    assert run(f"{line} --device cpu --tensorboard-log runs -params {' '.join(words)}")[0] == 0
    logs = tmp_path / "logs" / own.algorithm / "Pendulum-v1_1"

    rows = undisturbed.results().query("variant == @own.variant and seed == 1").set_index("step")
    evaluations = np.load(logs / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == rows.index.tolist()
    assert np.allclose(rows.eval_return, evaluations["results"].mean(1), rtol=1e-7)
    assert np.allclose(rows.eval_return_std, evaluations["results"].std(1), rtol=1e-6)

    folder = undisturbed.store.path(own)
    algorithm = ALGOS[own.algorithm]
    ours, theirs = (algorithm.load(path, device="cpu") for path in (folder / "model.zip", logs / "Pendulum-v1.zip"))
    assert ours.num_timesteps == theirs.num_timesteps == 512
    for name, tensor in theirs.policy.state_dict().items():
        assert th.equal(ours.policy.state_dict()[name], tensor), name
    paths = (folder / "vecnormalize.pkl", logs / "Pendulum-v1" / "vecnormalize.pkl")
    ours, theirs = (VecNormalize.load(path, vec_env(cls=lambda: gym.make("Pendulum-v1"))) for path in paths)
    assert np.array_equal(ours.obs_rms.mean, theirs.obs_rms.mean)

    (events,) = (tmp_path / "runs" / "Pendulum-v1").iterdir()
    check_against_the_log(rows, event_file(events))


def check_against_the_log(rows: pd.DataFrame, events) -> None:
    """Every row holds the moments of what TensorBoard shows since the row before."""
    start = 0
    for step, row in rows.iterrows():

        def logged(key: str, first: int = start, last: int = step) -> list[float]:
            if key not in events.Tags()["scalars"]:
                return []
            return [event.value for event in events.Scalars(key) if first < event.step <= last]

        kl = logged("trust_region/kl_mean")
        assert len(kl) >= 1
        assert row.kl_mean == pytest.approx(np.mean(kl), rel=1e-5)
        assert row.kl_spread == pytest.approx(np.std(kl), rel=1e-3, abs=1e-9)
        assert row.kl_max == pytest.approx(max(logged("trust_region/kl_max")), rel=1e-5)
        assert row.entropy == pytest.approx(np.mean(logged("trust_region/entropy")), rel=1e-5)
        for column, key in {"beta": "fixpo/beta", "fixup_share": "fixpo/fixup_share", "std": "train/std"}.items():
            values = logged(key)
            assert row[column] == pytest.approx(np.mean(values), rel=1e-5) if values else np.isnan(row[column])
        start = step


def test_seeds_side_by_side_have_the_rows_of_seeds_alone(undisturbed, tmp_path):
    """Within rounding, over the few updates of this study."""
    study = load(tmp_path)
    assert [len(job.runs) for job in study.jobs(seed_batch=True)] == [2, 1, 1, 2]
    assert study.run(jobs=1, seed_batch=True) == []
    together, alone = study.results(), undisturbed.results()
    numbers = together.select_dtypes("number").columns.drop("seconds")
    assert np.allclose(together[numbers], alone[numbers], rtol=2e-2, atol=1e-5, equal_nan=True)
    for run in study.runs[:2]:
        ours, theirs = (
            ALGOS[run.algorithm].load(s.store.path(run) / "model.zip", device="cpu") for s in (study, undisturbed)
        )
        for name, tensor in theirs.policy.state_dict().items():
            assert th.allclose(ours.policy.state_dict()[name], tensor, rtol=1e-3, atol=1e-4), name

    rows = table(study.store.folder)
    study.store.remove([*study.runs[:2], study.runs[5]])  # as if it had been killed before these batches ended
    assert [len(job.runs) for job in study.jobs(seed_batch=True)] == [2, 1]
    assert study.run(jobs=1, seed_batch=True) == []
    assert table(study.store.folder) == rows, "digit by digit: the same seeds again, and one without that beside it"


# --- interruptions ---


@pytest.fixture
def start(tmp_path):
    """Start the command in a process group of its own, as a terminal does; nothing of it outlives the test."""
    started = []

    def call(jobs: int) -> subprocess.Popen:
        process = subprocess.Popen(
            [*COMMAND, "--out", "out", "--jobs", str(jobs), "--no-seed-batch"],
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


def interrupt(process: subprocess.Popen, number: signal.Signals) -> tuple[int, str]:
    """Send a signal when the first run has finished, and return the exit status and the last words."""
    for line in process.stdout:
        if line.startswith("["):
            break
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    printed, _ = process.communicate(timeout=300)
    return process.returncode, printed


def modified(study: Study) -> dict[Path, int]:
    """Return when the files of finished runs were written."""
    return {path: path.stat().st_mtime_ns for run in study.finished for path in study.store.path(run).iterdir()}


@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGKILL, 1), (signal.SIGINT, 2)], ids=["killed", "Ctrl-C"])
def test_an_interrupted_study_goes_on(undisturbed, tmp_path, start, number, jobs):
    study = load(tmp_path)
    code, printed = interrupt(start(jobs), number)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    before = modified(study)
    assert 1 <= len(study.finished) < len(study.runs)
    if number == signal.SIGINT:
        assert f"Interrupted. {len(study.finished)} of 6 runs have finished" in printed
        assert "Traceback" not in printed
        assert table(study.store.folder) == [
            row for row in table(undisturbed.store.folder) if is_of(row, study.finished)
        ]
    assert study.run(jobs=1, seed_batch=False) == []
    assert modified(study).items() >= before.items(), "what had finished was not done again"
    assert table(study.store.folder) == table(undisturbed.store.folder)


def is_of(row: dict[str, str], runs: list) -> bool:
    return any((run.variant, run.task, str(run.seed)) == (row["variant"], row["task"], row["seed"]) for run in runs)


def test_the_workers_of_a_killed_study_end(tmp_path, start):
    """They would train on for hours otherwise."""
    load(tmp_path, SMALL.replace("n_timesteps: 512", "n_timesteps: 1000000"))
    process = start(jobs=2)
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


def test_nothing_is_done_twice(undisturbed):
    before = modified(undisturbed)
    assert undisturbed.jobs() == []
    assert undisturbed.run(jobs=1) == []
    assert modified(undisturbed) == before


def test_two_processes_do_not_share_a_folder(tmp_path):
    study, other = load(tmp_path), load(tmp_path)
    with study.store, pytest.raises(StudyError, match="Another process is at work"):
        other.run(jobs=1)


# --- changes ---


ONE = """\
tasks: [Pendulum-v1]
seeds: 1
n_timesteps: 64
eval_freq: 64
n_eval_episodes: 1
methods:
  A:
    algo: trpl
    params: {n_envs: 1, n_steps: 64, batch_size: 32, n_epochs: 1, n_critic_epochs: 1}
  B:
    algo: fixpo
    params: {n_envs: 1, n_steps: 64, batch_size: 32, n_epochs: 1}
"""


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


class FailingEnv(PointEnv):
    """Fails in the middle of the training of odd seeds."""

    def reset(self, *, seed=None, options=None):
        self.fails = seed % 2 == 1 if seed is not None else self.fails
        self.total = 0 if seed is not None else self.total
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.total += 1
        if self.fails and self.total > 100:
            raise RuntimeError("the simulator broke")
        return super().step(action)


@pytest.fixture
def failing():
    gym.register("FailingStudy-v0", FailingEnv)
    yield "FailingStudy-v0"
    gym.registry.pop("FailingStudy-v0")


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


def test_the_command_says_what_failed(run, tmp_path, failing):
    (tmp_path / "fails.yml").write_text(
        ONE.replace("Pendulum-v1", failing)
        .replace("seeds: 1", "seeds: [0, 1]")
        .replace("n_timesteps: 64", "n_timesteps: 128")
    )
    code, out, err = run("study fails.yml --jobs 1")
    assert code == 1
    assert "2 of 4 runs have finished: studies/fails/results.csv" in out
    assert re.search(r"2 runs failed:\n  A on FailingStudy-v0, seed 1: studies/fails/runs/A/.*/seed1.error.txt", err)
    assert (tmp_path / "studies/fails/runs/A/FailingStudy-v0/seed1.error.txt").is_file()


CRASHING = """\
import os

import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv


class CrashingEnv(PendulumEnv):
    def step(self, action):
        os._exit(9)


gym.register("CrashingStudy-v0", CrashingEnv, max_episode_steps=200)
"""


def test_a_process_that_dies_is_reported(tmp_path, monkeypatch):
    (tmp_path / "crashing_env.py").write_text(CRASHING)
    (tmp_path / "small.yml").write_text(ONE.replace("Pendulum-v1", "CrashingStudy-v0"))
    monkeypatch.syspath_prepend(tmp_path)
    study = Study.load(tmp_path / "small.yml", tmp_path / "out", packages=["crashing_env"])
    with pytest.raises(StudyError, match=r"(?s)A process was lost.*the same command goes on"):
        study.run(jobs=2)
    assert table(study.store.folder) == []
    gym.registry.pop("CrashingStudy-v0")


# --- clusters ---


@pytest.mark.parametrize(("backend", "module"), [("ray", "ray"), ("dask", "distributed")])
def test_a_cluster_gives_the_same_numbers(undisturbed, tmp_path, backend, module):
    pytest.importorskip(module, reason=f"{backend} is not installed")
    text = SMALL[: SMALL.index("  PPO:")] + SMALL[SMALL.index("  FixPO:") :]
    study = load(tmp_path, text.replace("seeds: 2", "seeds: [1]"))
    assert study.run(jobs=2, backend=backend) == []
    mine = [row for row in table(undisturbed.store.folder) if is_of(row, list(study.runs))]
    assert table(study.store.folder) == mine
    assert len(mine) == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--address here", "--address here is that of a cluster: choose --backend ray or --backend dask."),
        ("--jobs 0", "0: give 1 or more, or -1"),
        ("--backend spark", "invalid choice: 'spark'"),
    ],
)
def test_errors_of_the_command(run, tmp_path, flags, message):
    (tmp_path / "one.yml").write_text(ONE)
    code, _, err = run(f"study one.yml {flags}")
    assert code == 2
    assert message in err


def test_without_joblib(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    (tmp_path / "one.yml").write_text(ONE)
    code, _, err = run("study one.yml")
    assert code == 2
    assert err.strip().endswith('pip install "sb3-trl[study]"')


def test_the_flags_of_the_page_exist(run):
    page = (ROOT / "docs" / "studies.md").read_text()
    _, printed, _ = run("study --help")
    known = set(re.findall(r"--[a-z][\w-]*", printed))
    own = set(re.findall(r"--[a-z][\w-]*", "\n".join(re.findall(r"^sb3-trl study.*", page, re.MULTILINE))))
    assert own
    assert own | {"--rerun-changed", "--seed-batch", "--no-seed-batch", "--out", "--gym-packages"} <= known
    assert all(f"`{column}`" in page for column in COLUMNS)
