"""What is to be trained, as what a process elsewhere has to know, and what comes back from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sb3_trl.study.description import file_name

__all__ = [
    "CHECKPOINT_MINUTES",
    "Job",
    "Outcome",
    "Run",
    "Start",
    "checkpoint_path",
    "run_path",
    "status_folder",
    "waves",
]

#: Between two checkpoints of a run: seldom enough that they cost nothing, and little is lost.
CHECKPOINT_MINUTES = 5.0


@dataclass(frozen=True)
class Run:
    """One training with one seed: everything that a process elsewhere has to know.

    :param start_from: The run whose model it starts from, ``None`` for a new one.
    """

    algorithm: str
    variant: str
    task: str
    seed: int
    n_timesteps: int
    eval_freq: int
    n_eval_episodes: int
    hyperparameters: dict[str, Any]
    start_from: Run | None = None

    def __str__(self) -> str:
        return f"{self.variant} on {self.task}, seed {self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """What the numbers depend on, as JSON has it; those of the run that it starts from are among them."""
        settings = {key: value for key, value in vars(self).items() if key not in ("variant", "start_from")}
        if self.start_from is not None:
            settings["start_from"] = self.start_from.settings
        return json.loads(json.dumps(settings, default=str))


class Start(NamedTuple):
    """What a run starts from: what another has left.

    :param model: Its model, as SB3 saves it.
    :param normalization: Its ``VecNormalize``, as SB3 saves it; ``None`` if it has none.
    """

    model: bytes
    normalization: bytes | None


@dataclass(frozen=True)
class Job:
    """Runs that one process trains: one, or seeds of one variant on one task side by side.

    :param runs: The runs.
    :param is_batch: Whether they train in a ``SeedBatch``, where a seed alone learns what it learns among others.
    :param compile: Whether a batch of seeds is compiled.
    :param device: Torch's device.
    :param packages: Modules that register environments.
    :param folder: The study's, on this machine; there a training writes how far it is, and its checkpoints. ``""``
        for neither.
    :param checkpoint_minutes: A checkpoint is written at most so often.
    :param starts: What runs start from that do not begin anew, by seed.
    :param study_process: The process that waits for the result; a worker that it has started ends with it.
    """

    runs: tuple[Run, ...]
    is_batch: bool = False
    compile: bool = True
    device: str = "cpu"
    packages: tuple[str, ...] = ()
    folder: str = ""
    checkpoint_minutes: float = CHECKPOINT_MINUTES
    starts: Mapping[int, Start] = field(default_factory=dict)
    study_process: int = 0


@dataclass(frozen=True)
class Outcome:
    """What is left of a run: its files by name, or what went wrong."""

    run: Run
    files: dict[str, bytes]
    error: str | None = None


def run_path(run: Run) -> Path:
    """Return a run's folder in that of the study."""
    return Path("runs", file_name(run.variant), file_name(run.task), f"seed{run.seed}")


def checkpoint_path(folder: Path, run: Run) -> Path:
    """Return the file in the study's folder that a run which was interrupted goes on from."""
    path = folder / run_path(run)
    return path.with_name(f"{path.name}.checkpoint")


def status_folder(folder: Path) -> Path:
    """Return the folder in the study's that is there while it trains: trainings write there how far they are."""
    return folder / ".running"


def waves(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return jobs in the order in which they can begin: those of a wave start from runs of earlier ones, or of none."""
    runs = {str(run) for job in jobs for run in job.runs}

    def wave(run: Run) -> int:
        before = run.start_from
        return 0 if before is None or str(before) not in runs else 1 + wave(before)

    numbers = [max(map(wave, job.runs)) for job in jobs]
    return [[job for job, own in zip(jobs, numbers, strict=True) if own == n] for n in sorted(set(numbers))]
