"""How far the trainings are that run now: each writes it to a file of its own, and the study reads them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from sb3_trl.study.jobs import Run, run_path

__all__ = ["Status", "read_statuses", "reporter", "status_path"]


class Status(NamedTuple):
    """Where a training is.

    :param steps: Environment steps of the run.
    :param first: How many of them it had when this training began: not 0 if it goes on from a checkpoint.
    :param eval_return: Mean return of the latest evaluation, ``None`` before the first.
    """

    steps: int
    first: int = 0
    eval_return: float | None = None


def status_path(folder: Path, run: Run) -> Path:
    """Return the file in ``folder`` in which a run's training writes how far it is."""
    return folder / "--".join(run_path(run).parts)


def reporter(path: Path) -> Callable[[Status], None]:
    """Return a function that writes to a file how far a training is, once a second at most.

    Where the file's folder is not there, on another machine or after the study's end, nothing is written.
    """
    last = 0.0

    def report(status: Status) -> None:
        nonlocal last
        if time.monotonic() > last + 1 and path.parent.is_dir():
            path.write_text(json.dumps(status))
            last = time.monotonic()

    return report


def read_statuses(folder: Path, runs: Iterable[Run]) -> list[tuple[Run, Status]]:
    """Return those of the runs that train now, and how far they are, as far as is known here."""
    statuses = []
    there = {path.name for path in folder.glob("*")}
    for run in runs:
        path = status_path(folder, run)
        if path.name not in there:
            continue
        try:
            statuses.append((run, Status(*json.loads(path.read_text()))))
        except (OSError, ValueError):  # it is being written, or has just been removed
            continue
    return statuses
