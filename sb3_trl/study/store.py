"""Where the runs of a study are kept: a folder for each, which appears when the run has finished, and whole."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from sb3_trl.moved import with_new_names
from sb3_trl.study.checkpoint import UNREADABLE, Begun, is_whole, read_begun
from sb3_trl.study.jobs import Outcome, Run, Start, checkpoint_path, run_path, status_folder
from sb3_trl.study.reader import StudyError
from sb3_trl.study.rows import COLUMNS, LATER_COLUMNS
from sb3_trl.study.status import Status, read_statuses, status_path
from sb3_trl.study.task_rows import BY_TASK, TASK_COLUMNS

__all__ = ["PLAN", "Store"]

#: File in a study's folder: the runs that there are to be.
PLAN = ".plan.csv"


class Store:
    """The output folder of a study.

    A job's files are written to a folder whose name begins with ``.writing``; renamed to ``.finished`` it is there
    as a whole, and then its runs move to their places. What an interruption leaves of this, ``recover`` brings to
    its end: a ``.finished`` folder's runs move on, a ``.writing`` folder is removed. A run that has begun and not
    finished has a checkpoint beside the place of its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.status = status_folder(folder)

    @property
    def results(self) -> Path:
        """The CSV file of all finished runs."""
        return self.folder / "results.csv"

    def path(self, run: Run) -> Path:
        """Return a run's folder, which is there if the run has finished."""
        return self.folder / run_path(run)

    def error_path(self, run: Run) -> Path:
        """Return the file that holds the traceback of a run that has failed."""
        path = self.path(run)
        return path.with_name(f"{path.name}.error.txt")

    def is_finished(self, run: Run) -> bool:
        """Return whether a run has finished."""
        return self.path(run).is_dir()

    def begun(self, run: Run) -> Begun | None:
        """Return how far a run is that was interrupted, ``None`` for one that has finished, or is to begin."""
        if self.is_finished(run):
            return None
        try:
            return read_begun(checkpoint_path(self.folder, run))
        except (FileNotFoundError, *UNREADABLE):
            return None

    def steps_begun(self, run: Run) -> int:
        """Return the step from which a run goes on, 0 if it begins anew."""
        begun = self.begun(run)
        return 0 if begun is None else begun.steps

    def differences(self, run: Run) -> dict[str, tuple[Any, Any]]:
        """Return the settings in which a run that is here differs from ``run``: its own, and those of ``run``."""
        begun = self.begun(run)
        text = json.dumps(begun.settings) if begun else (self.path(run) / "run.json").read_text()
        return _differences(json.loads(with_new_names(text)), run.settings)

    def start(self, run: Run) -> Start:
        """Return what another run starts from: what this one, which has finished, has left."""
        normalization = self.path(run) / "vecnormalize.pkl"
        return Start(
            (self.path(run) / "model.zip").read_bytes(),
            normalization.read_bytes() if normalization.is_file() else None,
        )

    def __enter__(self) -> Store:
        """Make the folder ready for training.

        :raises StudyError: if another process is at work on it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        self.recover()
        shutil.rmtree(self.status, ignore_errors=True)
        self.status.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.status, ignore_errors=True)
        self._locked.close()

    def _lock(self) -> None:
        """Keep others out until this process closes the folder, or ends."""
        self._locked = (self.folder / ".lock").open("w")
        try:
            import fcntl

            fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ModuleNotFoundError:  # there is none on Windows
            return
        except BlockingIOError as error:
            raise StudyError(
                f"Another process is at work on {self.folder}. Wait for it, or give another --out."
            ) from error

    def recover(self) -> None:
        """Bring to its end what was interrupted."""
        for folder in self.folder.glob(".finished*"):
            self._move(folder)
        for folder in self.folder.glob(".writing*"):
            shutil.rmtree(folder)
        for part in self.folder.glob("runs/*/*/.*.checkpoint*.part"):
            part.unlink(missing_ok=True)
        for checkpoint in self.folder.glob("runs/*/*/*.checkpoint"):
            if checkpoint.with_suffix("").is_dir():  # the run has finished
                checkpoint.unlink(missing_ok=True)

    def drop_damaged(self, runs: Iterable[Run]) -> list[Run]:
        """Remove checkpoints that cannot be read, and return the runs that they were of."""
        paths = [(run, checkpoint_path(self.folder, run)) for run in runs]
        damaged = [(run, path) for run, path in paths if path.is_file() and not is_whole(path)]
        for _, path in damaged:
            path.unlink()
        return [run for run, _ in damaged]

    def keep(self, outcomes: Sequence[Outcome]) -> None:
        """Write what is left of a job's runs, all of them or none."""
        for outcome in outcomes:
            self.error_path(outcome.run).unlink(missing_ok=True)
            if outcome.error is not None:
                self.error_path(outcome.run).parent.mkdir(parents=True, exist_ok=True)
                self.error_path(outcome.run).write_text(outcome.error)
        writing = Path(mkdtemp(prefix=".writing", dir=self.folder))
        for outcome in outcomes:
            if outcome.error is None:
                folder = writing / run_path(outcome.run)
                folder.mkdir(parents=True)
                for name, content in outcome.files.items():
                    (folder / name).write_bytes(content)
        self._move(writing.rename(writing.with_name(writing.name.replace(".writing", ".finished"))))
        for outcome in outcomes:
            checkpoint_path(self.folder, outcome.run).unlink(missing_ok=True)

    def _move(self, finished: Path) -> None:
        for source in sorted(finished.glob("runs/*/*/*")):
            target = self.folder / source.relative_to(finished)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                source.rename(target)
        shutil.rmtree(finished)

    def remove(self, runs: Iterable[Run]) -> None:
        """Forget runs that have finished, or begun."""
        for run in runs:
            if self.is_finished(run):
                shutil.rmtree(self.path(run))
            checkpoint_path(self.folder, run).unlink(missing_ok=True)

    def write_results(self, study: str, runs: Iterable[Run]) -> None:
        """Write the rows of those ``runs`` that have finished, in their order; those of single tasks beside them."""
        finished = [run for run in runs if self.is_finished(run)]
        _write(self.results, study, COLUMNS, (row for run in finished for row in self._rows(run)))
        if any((self.path(run) / BY_TASK).is_file() for run in finished):
            by_task = (row for run in finished for row in self._task_rows(run))
            _write(self.folder / BY_TASK, study, TASK_COLUMNS, by_task)

    def write_plan(self, runs: Iterable[Run]) -> None:
        """Write which runs there are to be, for a report that comes before they have finished."""
        part = self.folder / ".plan.csv.part"
        with part.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("variant", "task", "seed"))
            writer.writerows((run.variant, run.task, run.seed) for run in runs)
        part.replace(self.folder / PLAN)

    def _rows(self, run: Run) -> Iterator[dict[str, str]]:
        """Return a finished run's rows; those of an earlier version may lack the later columns."""
        with (self.path(run) / "rows.csv").open(newline="") as file:
            rows = csv.DictReader(file)
            own = set(rows.fieldnames or ())
            if {*own, *LATER_COLUMNS} != {*COLUMNS[1:]}:
                raise StudyError(f"{self.path(run)} has other columns than this version's: remove that folder.")
            yield from rows

    def _task_rows(self, run: Run) -> Iterator[dict[str, str]]:
        """Return a finished run's rows of single tasks, if it has some."""
        path = self.path(run) / BY_TASK
        if path.is_file():
            with path.open(newline="") as file:
                yield from csv.DictReader(file)

    def statuses(self, runs: Iterable[Run]) -> list[tuple[Run, Status]]:
        """Return those of the runs that train now, and how far they are, as far as is known here."""
        return read_statuses(self.status, runs)

    def forget_status(self, run: Run) -> None:
        """Forget how far a run was: it has ended."""
        status_path(self.status, run).unlink(missing_ok=True)


def _write(path: Path, study: str, columns: Sequence[str], rows: Iterable[dict[str, str]]) -> None:
    """Write rows of a study as CSV, in the place of those before."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({"study": study} | row for row in rows)
    part.replace(path)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two runs differ; those of the runs that both start from, as ``start_from.…``."""
    mine, theirs = old.get("start_from"), new.get("start_from")
    old, new = (settings | settings["hyperparameters"] for settings in (old, new))
    keys = sorted((old.keys() | new.keys()) - {"hyperparameters", "start_from"})
    found = {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}
    if mine is not None and theirs is not None:
        return found | {f"start_from.{key}": pair for key, pair in _differences(mine, theirs).items()}
    first, second = (start and f"{start['algorithm']} on {start['task']}" for start in (mine, theirs))
    return found | ({} if first == second else {"start_from": (first, second)})
