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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sb3_trl.study.jobs import Job, Outcome, Run, checkpoint_path, status_folder

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

    from sb3_trl.study.checkpoint import Checkpoint
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
    What has failed begins anew, and not at a checkpoint: what a run learns does not depend on who trained beside it,
    and one that diverges has no second chance.
    """
    _belong_to(job.study_process)
    printed = io.StringIO()
    try:
        with _one_at_a_time, TemporaryDirectory() as folder, redirect_stdout(printed), redirect_stderr(printed):
            _prepare(job.packages)
            with _one_thread():
                return _train(job, Path(folder))
    except Exception:
        for run in job.runs if job.folder else ():
            checkpoint_path(Path(job.folder), run).unlink(missing_ok=True)
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
        from sb3_trl.study.checkpoint import Checkpoints, can_go_on
        from sb3_trl.study.rows import Rows
        from sb3_trl.study.status import reporter, status_path
        from sb3_trl.study.transfer import begin_from

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
        self._home = Path(job.folder) if job.folder else None
        self._counting = tuple(self.callbacks)
        report = reporter(status_path(status_folder(self._home), run)) if self._home else None
        self.rows: Rows = Rows(run, self.evaluation, report)
        self.callbacks.append(self.rows)
        going_on = self._go_on()
        if going_on is None and run.start_from is not None:
            begin_from(self.model, job.starts[run.seed])
        if can_go_on(self.model):
            self.callbacks.append(Checkpoints(self._save, job.checkpoint_minutes, going_on))

    @property
    def _checkpoint(self) -> Path | None:
        """The file of the checkpoint; ``None`` on another machine than the study's folder, or after the study's end."""
        if self._home is None or not status_folder(self._home).is_dir():
            return None
        return checkpoint_path(self._home, self.run)

    def _go_on(self) -> Checkpoint | None:
        """Become the run that a checkpoint holds, and return it; ``None`` if there is none."""
        from sb3_trl.study.checkpoint import read_checkpoint, restore

        path = self._checkpoint
        if path is None or not path.is_file():
            return None
        checkpoint = read_checkpoint(path)
        self.model = restore(checkpoint, self.model, self._counting, self.evaluation.eval_env, self.run.seed)
        self.rows.go_on(checkpoint.state["rows"])
        return checkpoint

    def _save(self) -> None:
        """Write a checkpoint."""
        from sb3_trl.study.checkpoint import Begun, Checkpoint, own_state, write_checkpoint

        path = self._checkpoint
        if path is None:
            return
        model = io.BytesIO()
        self.model.save(model)
        begun = Begun(self.run.settings, self.model.num_timesteps)
        state = own_state(self.model, self._counting) | {"rows": self.rows.state}
        write_checkpoint(path, Checkpoint(begun, model.getvalue(), state))

    @property
    def steps_left(self) -> int:
        """Environment steps that are to be made."""
        return self.experiment.n_timesteps - self.model.num_timesteps

    def learn(self) -> None:
        """Train alone."""
        is_new = self.model.num_timesteps == 0
        self.model.learn(self.steps_left, callback=self.callbacks, reset_num_timesteps=is_new)

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
        return files | self.rows.files()


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

            def of(model: Any) -> _Training:
                return trainings[batch.seeds[batch.models.index(model)]]

            batch.learn(
                lambda model: of(model).steps_left, lambda model: of(model).callbacks, reset_num_timesteps=False
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
