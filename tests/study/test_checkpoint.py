"""Runs that are interrupted in the middle go on from their last checkpoint."""

import importlib
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.wrappers import NormalizeObservation
from rl_zoo3.utils import ALGOS
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import VecNormalize
from support import PointEnv, vec_env

from sb3_trl.study import Study, StudyError
from sb3_trl.study.checkpoint import (
    Begun,
    Checkpoint,
    Checkpoints,
    can_go_on,
    own_state,
    read_begun,
    read_checkpoint,
    restore,
    write_checkpoint,
)
from sb3_trl.study.jobs import checkpoint_path
from sb3_trl.study.study import describe

from .cases import load as load_study
from .cases import modified, table

#: Five rollouts of 64 steps; evaluations in the middle of the second, at the end of the third, in the fifth.
TEXT = """\
tasks: [{task}]
seeds: {seeds}
n_timesteps: 320
eval_freq: 96
n_eval_episodes: 1
methods:
  A:
    algo: {algo}
    conf_file: own.yml
    params: {params}
"""
CONF = (
    "default: {policy: %s, n_timesteps: 320, n_envs: 2, n_steps: 32, batch_size: 32, n_epochs: 2, "
    "learning_rate: lin_1e-2}\n"
)


class SameEpisodeEnv(PointEnv):
    """Every episode is the same, and ends with the rollout: a new one begins as the one after it would."""

    def __init__(self):
        super().__init__(length=16)

    def reset(self, *, seed=None, options=None):
        self.np_random = np.random.default_rng(7)
        return super().reset()


@pytest.fixture(scope="module", autouse=True)
def same():
    gym.register("SameEpisode-v0", SameEpisodeEnv)
    yield
    gym.registry.pop("SameEpisode-v0")


def load_in(folder: Path, out: str, algo: str = "trpl", task: str = "SameEpisode-v0", **changes: object) -> Study:
    policy = "MlpLstmPolicy" if "recurrent" in algo else "MlpPolicy"
    (folder / "own.yml").write_text(CONF % policy)
    content = {"algo": algo, "task": task, "seeds": 1, "params": "{}"} | changes
    return load_study(folder, TEXT.format(**content), out)


@pytest.fixture
def load(tmp_path):
    """Return a study of ``TEXT``, in a folder of its own for every name."""
    return partial(load_in, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that was not interrupted."""
    study = load_in(tmp_path_factory.mktemp("whole"), "whole")
    assert study.run(jobs=1) == []
    return study


@pytest.fixture
def interrupt(monkeypatch):
    """Train a study, with a checkpoint in every rollout, until a run begins a rollout at some step."""

    def call(study: Study, step: int, **arguments) -> None:
        save = Checkpoints._on_rollout_start

        def save_or_stop(callback: Checkpoints) -> None:
            if callback.model.num_timesteps == step:
                raise KeyboardInterrupt
            save(callback)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "_on_rollout_start", save_or_stop)
            with pytest.raises(KeyboardInterrupt):
                study.run(jobs=1, checkpoint_minutes=0, **arguments)

    return call


def checkpoint_of(study: Study, index: int = 0) -> Path:
    return checkpoint_path(study.store.folder, study.runs[index])


def resumed(study: Study) -> list[int]:
    return study.results().resumed.tolist()


def check_same_training(study: Study, other: Study) -> None:
    """The same numbers, the same parameters and the same state of the optimisers, to the last digit."""
    without = ("seconds", "resumed")
    assert table(study.store.folder, without) == table(other.store.folder, without)
    for run in study.runs:
        ours, theirs = (
            ALGOS[run.algorithm].load(s.store.path(run) / "model.zip", device="cpu") for s in (study, other)
        )
        assert ours.num_timesteps == theirs.num_timesteps == 320
        theirs = theirs.get_parameters()
        for name, state in ours.get_parameters().items():
            th.testing.assert_close(state, theirs[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("algo", "params"),
    [
        ("trpl", "{n_critic_epochs: 2, cov_bound: 0.001}"),
        ("fixpo", "{}"),
        ("fixpo", "{normalize: dict(norm_obs=False)}"),
        ("papi", "{}"),
        ("ppo", "{}"),
        ("recurrent_fixpo", "{}"),
    ],
)
def test_a_run_goes_on_where_it_was(load, interrupt, algo, params):
    """With schedules, optimisers, random numbers and evaluations: where no episode is cut, to the last digit."""
    whole, study = load("whole", algo, params=params), load("out", algo, params=params)
    assert whole.run(jobs=1) == []
    interrupt(study, 256)  # three rollouts, and an evaluation at their end, which is the last of the checkpoint
    assert study.finished == []
    assert read_begun(checkpoint_of(study)).steps == 192
    assert study.run(jobs=1, checkpoint_minutes=0) == []
    check_same_training(study, whole)
    assert study.results().step.tolist() == [96, 192, 288]
    assert (resumed(whole), resumed(study)) == ([0, 0, 0], [0, 0, 1])
    assert not list(study.store.folder.rglob("*.checkpoint*"))


def test_evaluations_after_the_checkpoint_are_made_again(whole, load, interrupt):
    study = load("out")
    interrupt(study, 192)
    assert [row["step"] for row in read_checkpoint(checkpoint_of(study)).state["rows"]["rows"]] == [96]
    interrupt(study, 192)
    assert study.run(jobs=1) == []
    check_same_training(study, whole)
    assert resumed(study) == [0, 1, 1], "twice from the same checkpoint is once"


def test_a_run_that_is_interrupted_twice(whole, load, interrupt):
    study = load("out")
    interrupt(study, 128)
    interrupt(study, 256)
    assert study.run(jobs=1) == []
    check_same_training(study, whole)
    assert resumed(study) == [1, 1, 2]


def test_seeds_side_by_side_go_on(load, interrupt):
    """One of them begins anew, and does not mind the others."""
    whole, study = load("whole", seeds=3), load("out", seeds=3)
    assert whole.run(jobs=1, seed_batch=True) == []
    interrupt(study, 256, seed_batch=True)
    checkpoint_of(study, 1).unlink()
    jobs = study.jobs(seed_batch=True)
    assert describe(study, jobs).splitlines()[1:] == [
        "  A on SameEpisode-v0, 320 steps, seeds side by side: 0, 1, 2; goes on from step 0 or 192"
    ]
    assert study.run(jobs=1, seed_batch=True) == []
    check_same_training(study, whole)
    assert resumed(study) == [0, 0, 1, 0, 0, 0, 0, 0, 1]


def test_what_callbacks_have_changed_differs_between_seeds_that_go_on(load, interrupt, monkeypatch):
    """They are of one configuration nevertheless."""

    def anneal(callback: Checkpoints) -> bool:
        callback.model.ent_coef = callback.model.num_timesteps / 1e6
        return True

    monkeypatch.setattr(Checkpoints, "_on_step", anneal)
    study = load("out", "fixpo", seeds=2)
    interrupt(study, 256, seed_batch=True)
    checkpoint_of(study, 1).unlink()
    assert study.run(jobs=1, seed_batch=True) == []
    assert resumed(study) == [0, 0, 1, 0, 0, 0], "they were not trained again, each alone"


def test_episodes_and_statistics(load, interrupt):
    """``VecNormalize`` goes on counting; the episodes that begin are new ones, the same whenever a run goes on."""
    params = "{normalize: true}"
    whole, *studies = (load(name, task="Pendulum-v1", params=params) for name in ("whole", "a", "b"))
    whole.run(jobs=1)
    for study in studies:
        interrupt(study, 192)
        assert study.run(jobs=1) == []
    check_same_training(*studies)
    before, after = table(whole.store.folder), table(studies[0].store.folder)
    assert before[0] == after[0]
    assert before[1]["eval_return"] != after[1]["eval_return"]
    own, others = (
        VecNormalize.load(s.store.path(s.runs[0]) / "vecnormalize.pkl", vec_env(cls=lambda: gym.make("Pendulum-v1")))
        for s in (studies[0], whole)
    )
    assert own.obs_rms.count == pytest.approx(others.obs_rms.count + 2), "the first observations of two environments"
    assert own.ret_rms.count == pytest.approx(others.ret_rms.count)


def test_hours_are_summed(load, interrupt):
    study = load("out")
    interrupt(study, 192)
    checkpoint = read_checkpoint(checkpoint_of(study))
    checkpoint.state["rows"]["seconds"] += 1000
    write_checkpoint(checkpoint_of(study), checkpoint)
    study.run(jobs=1)
    seconds = study.results().seconds
    assert seconds[0] < 1000 < seconds[1] <= seconds[2] < 2000


#: Its second seed waits in the middle of the second rollout.
SLOW = """\
import time
from pathlib import Path

import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv


class SlowEnv(PendulumEnv):
    total = 0

    def step(self, action):
        self.total += 1
        while self.total > 70 and Path("wait").exists() and list(Path("out").rglob("model.zip")):
            time.sleep(0.1)
        return super().step(action)


gym.register("SlowStudy-v0", SlowEnv, max_episode_steps=20)
"""


def test_a_killed_process(tmp_path, monkeypatch, load):
    """The same command goes on, in another process, and does not do again what had finished."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow_env.py").write_text(SLOW)
    importlib.invalidate_caches()
    importlib.import_module("slow_env")
    study = load("out", task="SlowStudy-v0", seeds=2)
    study.packages = ("slow_env",)
    (tmp_path / "wait").touch()
    command = [sys.executable, "-m", "sb3_trl.cli", "study", "small.yml", "--out", "out", "--jobs", "1"]
    process = subprocess.Popen(
        [*command, "--checkpoint-minutes", "0", "--gym-packages", "slow_env", "--no-seed-batch"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (study.store.begun(study.runs[1]) and study.store.steps_begun(study.runs[1]) == 128):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (tmp_path / "wait").unlink()
    assert study.finished == [study.runs[0]]
    assert [job.runs for job in study.jobs()] == [(study.runs[1],)]
    before = modified(study)
    assert study.run(jobs=1) == []
    assert modified(study).items() > before.items()
    assert study.results().step.tolist() == [96, 192, 288] * 2
    assert resumed(study) == [0, 0, 0, 0, 1, 1]
    assert not checkpoint_of(study, 1).exists()
    gym.registry.pop("SlowStudy-v0")


# --- checkpoints that are not gone on from ---


def test_a_damaged_checkpoint(whole, load, interrupt, capsys):
    study = load("out")
    interrupt(study, 192)
    content = checkpoint_of(study).read_bytes()
    checkpoint_of(study).write_bytes(content[: len(content) // 2])
    assert study.run(jobs=1) == []
    assert (
        "A on SameEpisode-v0, seed 0: its checkpoint cannot be read, so that it begins anew." in capsys.readouterr().out
    )
    check_same_training(study, whole)
    assert resumed(study) == [0, 0, 0]


def test_a_bit_that_has_changed_is_noticed(load, interrupt):
    study = load("out")
    interrupt(study, 128)
    with zipfile.ZipFile(checkpoint_of(study)) as archive:
        middle = archive.getinfo("model.zip").header_offset + archive.getinfo("model.zip").file_size // 2
    content = bytearray(checkpoint_of(study).read_bytes())
    content[middle] ^= 1
    checkpoint_of(study).write_bytes(content)
    assert study.store.drop_damaged(study.runs) == [study.runs[0]]
    assert not checkpoint_of(study).exists()


def test_a_checkpoint_of_other_settings(load, interrupt):
    interrupt(load("out"), 192)
    changed = load("out", params="{n_epochs: 1}")
    content = checkpoint_of(changed).read_bytes()
    with pytest.raises(
        StudyError, match=r"A on SameEpisode-v0, seed 0 was begun with other settings: n_epochs 2, now 1"
    ):
        changed.run(jobs=1)
    assert checkpoint_of(changed).read_bytes() == content
    assert changed.run(jobs=1, rerun_changed=True) == []
    assert resumed(changed) == [0, 0, 0]


def test_what_has_failed_begins_anew(load, interrupt, monkeypatch):
    study = load("out")
    interrupt(study, 192)
    with monkeypatch.context() as patch:
        patch.setattr(SameEpisodeEnv, "step", lambda *_: 1 / 0)
        assert study.run(jobs=1) == [study.runs[0]]
    assert not checkpoint_of(study).exists()
    assert study.run(jobs=1) == []
    assert resumed(study) == [0, 0, 0]


def test_a_checkpoint_that_was_left_behind_is_removed(load):
    study = load("out")
    study.run(jobs=1)
    checkpoint_of(study).write_text("of a run that has finished")
    part = checkpoint_of(study).with_name(".seed0.checkpointabc.part")
    part.write_text("half")
    study.store.recover()
    assert not checkpoint_of(study).exists()
    assert not part.exists()
    assert study.finished == [*study.runs]


# --- what is written, and when ---


def test_short_runs_have_none(load, monkeypatch):
    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("sb3_trl.study.checkpoint.write_checkpoint", fail)
    assert load("out").run(jobs=1) == []


def test_a_full_disk_does_not_stop_training(load, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("sb3_trl.study.checkpoint.write_checkpoint", full)
    with pytest.warns(UserWarning, match="A checkpoint cannot be written: No space left on device. Training goes on."):
        assert load("out").run(jobs=1, checkpoint_minutes=0) == []


def test_a_checkpoint_is_whole_or_not_there(tmp_path):
    path = tmp_path / "folder" / "seed0.checkpoint"
    checkpoint = Checkpoint(Begun({"seed": 0}, 64), b"model", {"numbers": [1, 2]})
    write_checkpoint(path, checkpoint)
    assert read_checkpoint(path) == checkpoint
    with pytest.raises(Exception, match="pickle"):
        write_checkpoint(path, checkpoint._replace(state={"function": lambda: None}))
    assert read_checkpoint(path) == checkpoint
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_kept_is_not_begun():
    """A replay buffer, and what an environment has learned itself."""
    assert can_go_on(PPO("MlpPolicy", "Pendulum-v1", device="cpu"))
    assert not can_go_on(SAC("MlpPolicy", "Pendulum-v1", buffer_size=1, device="cpu"))
    assert not can_go_on(PPO("MlpPolicy", NormalizeObservation(gym.make("Pendulum-v1")), device="cpu"))


class Counting(BaseCallback):
    """Counts, keeps the name of a folder, and calls others."""

    def __init__(self, folder: str, *others: BaseCallback) -> None:
        super().__init__()
        self.folder, self.others = folder, list(others)
        self.counts = {"steps": [0, 0.5]}
        self.parent = self.others[0] if others else None

    def _on_step(self) -> bool:
        self.counts["steps"][0] += 1
        return True


def test_callbacks_go_on_counting():
    def make(folder: str) -> tuple[PPO, list[BaseCallback], list[Counting]]:
        inner, shared = Counting(folder), Counting(folder)
        own = [Counting(folder, inner, shared), CallbackList([shared])]
        return PPO("MlpPolicy", vec_env(), n_steps=8, device="cpu"), own, [own[0], inner, shared]

    model, callbacks, (outer, inner, shared) = make("of then")
    for callback, n in ((outer, 3), (inner, 2), (shared, 1)):
        callback.n_calls, callback.counts = n, {"steps": [n, np.float64(n)]}
    state = own_state(model, callbacks)
    buffer = io.BytesIO()
    model.save(buffer)

    model, callbacks, counting = make("of now")
    restore(Checkpoint(Begun({}, 8), buffer.getvalue(), state), model, callbacks, vec_env(), 0)
    assert [one.n_calls for one in counting] == [3, 2, 1]
    assert [one.counts["steps"] for one in counting] == [[3, 3.0], [2, 2.0], [1, 1.0]]
    assert {one.folder for one in counting} == {"of now"}
