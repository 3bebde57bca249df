"""One run, or one batch of seeds: training as ``sb3-trl train`` does it, and the files that are left of it."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sb3_trl.study.jobs import Job, Outcome, Run, run_path

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

    from sb3_trl.study.rows import Rows
    from sb3_trl.zoo.experiment import Experiment

__all__ = ["make_experiment", "train"]

#: Algorithms whose trust region is not in their own log.
MEASURED = ("ppo", "lean_ppo", "a2c", "trpo", "lean_trpo", "ppo_lstm", "lean_recurrent_ppo")

#: A process has one random stream for all of its threads: its runs take turns.
_one_at_a_time = threading.Lock()


def train(job: Job) -> list[Outcome]:
    """Train the runs of a job, and return what is left of each.

    Should a batch fail, each of its seeds is trained alone: one that diverges does not take the others with it.
    """
    _belong_to(job.study_process)
    printed = io.StringIO()
    try:
        with _one_at_a_time, TemporaryDirectory() as folder, redirect_stdout(printed), redirect_stderr(printed):
            _prepare(job.packages)
            with _one_thread():
                return _train(job, Path(folder))
    except Exception:
        if len(job.runs) > 1:
            return [outcome for run in job.runs for outcome in train(replace(job, runs=(run,)))]
        error = f"{traceback.format_exc()}\nWhat it printed:\n{printed.getvalue()[-20_000:]}"
        return [Outcome(job.runs[0], {}, error)]


def make_experiment(run: Run, folder: Path, device: str) -> Experiment:
    """Return the run's RL Zoo experiment, which leaves its files in ``folder``."""
    import yaml

    from sb3_trl.zoo.experiment import Experiment

    config = folder / "hyperparameters.yml"
    config.write_text(yaml.safe_dump({run.task: run.hyperparameters}))
    return Experiment(
        argparse.Namespace(),
        run.algorithm,
        run.task,
        str(folder),
        n_timesteps=run.n_timesteps,
        eval_freq=run.eval_freq,
        n_eval_episodes=run.n_eval_episodes,
        seed=run.seed,
        log_interval=-1,
        verbose=0,
        device=device,
        config=str(config),
    )


class _Training:
    """A run's model, its environments and callbacks."""

    def __init__(self, run: Run, folder: Path, job: Job) -> None:
        from stable_baselines3.common.callbacks import EvalCallback
        from stable_baselines3.common.utils import set_random_seed

        from sb3_trl.monitoring.callbacks import TrustRegionCallback
        from sb3_trl.study.rows import Rows

        folder.mkdir()
        self.run, self.folder = run, folder
        set_random_seed(run.seed)
        self.experiment = make_experiment(run, folder, job.device)
        made = self.experiment.setup_experiment()
        assert made is not None
        self.model: BaseAlgorithm = made[0]
        self.callbacks = self.experiment.callbacks
        if run.algorithm in MEASURED and not any(isinstance(c, TrustRegionCallback) for c in self.callbacks):
            self.callbacks.insert(0, TrustRegionCallback())
        (self.evaluation,) = (c for c in self.callbacks if isinstance(c, EvalCallback))
        self.rows: Rows = Rows(run, self.evaluation, _reporter(job.status, run))
        self.callbacks.append(self.rows)

    def learn(self) -> None:
        """Train alone."""
        self.model.learn(self.experiment.n_timesteps, callback=self.callbacks)

    def close(self) -> None:
        """Close the environments."""
        for env in (self.model.env, self.evaluation.eval_env):
            if env is not None:
                env.close()

    def files(self) -> dict[str, bytes]:
        """Return the files that are kept."""
        self.model.save(self.folder / "model.zip")
        names = ["model.zip"]
        normalization = self.model.get_vec_normalize_env()
        if normalization is not None:
            normalization.save(str(self.folder / "vecnormalize.pkl"))
            names.append("vecnormalize.pkl")
        files = {name: (self.folder / name).read_bytes() for name in names}
        files["run.json"] = json.dumps(self.run.settings, indent=1, sort_keys=True).encode()
        files["rows.csv"] = self.rows.csv().encode()
        return files


def _train(job: Job, folder: Path) -> list[Outcome]:
    from sb3_trl.seeds.batch import SeedBatch

    trainings: dict[int, _Training] = {}

    def make(seed: int) -> Any:
        run = next(run for run in job.runs if run.seed == seed)
        trainings[seed] = _Training(run, folder / f"seed{seed}", job)
        return trainings[seed].model

    try:
        if job.is_batch:
            batch = SeedBatch.of_models(make, [run.seed for run in job.runs], job.compile)
            batch.learn(
                job.runs[0].n_timesteps, lambda model: trainings[batch.seeds[batch.models.index(model)]].callbacks
            )
        else:
            (run,) = job.runs
            make(run.seed)
            trainings[run.seed].learn()
        return [Outcome(training.run, training.files()) for training in trainings.values()]
    finally:
        for training in trainings.values():
            training.close()


def _prepare(packages: Sequence[str]) -> None:
    """Make this process know the algorithms and environments."""
    from sb3_trl.zoo.registry import register

    register()
    for package in packages:
        importlib.import_module(package)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute with one thread, which is what networks of this size want, inside the block."""
    import torch as th

    threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(threads)


def _reporter(status: str, run: Run) -> Callable[[int], None]:
    """Return a function that writes, once a second at most, how many steps a run has made."""
    path = Path(status, "--".join(run_path(run).parts))
    last = 0.0

    def report(steps: int) -> None:
        nonlocal last
        if status and time.monotonic() > last + 1 and path.parent.is_dir():
            path.write_text(str(steps))
            last = time.monotonic()

    return report


def _belong_to(study_process: int) -> None:
    """In a process that the study's has started: leave Ctrl-C to that one, and end when it has gone."""
    if os.getppid() != study_process:
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == study_process:
            time.sleep(1)
        os._exit(1)

    if not any(thread.name == "study" for thread in threading.enumerate()):
        threading.Thread(target=watch, name="study", daemon=True).start()
