"""What is seen of a running study: a bar with the time that is left, and a line for every run that ends."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

__all__ = ["Display"]


class Display:
    """Shows how far a study is while it is a context, on a terminal with a bar that moves.

    :param n_runs: Runs of the study.
    :param n_finished: Those that have finished before.
    :param steps: Environment steps that are left.
    :param steps_running: Returns how many of them the running trainings have made.
    """

    def __init__(self, n_runs: int, n_finished: int, steps: int, steps_running: Callable[[], int]) -> None:
        self.n_runs, self.n_ended = n_runs, n_finished
        self.steps, self.steps_ended = steps, 0
        self._steps_running = steps_running
        self._start = time.monotonic()
        self._over = threading.Event()
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        self._progress = Progress(
            *columns,
            console=Console(file=sys.stderr),
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task(self._description(0), total=max(steps, 1))
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Display:
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._progress.stop()

    def ended(self, text: str, steps: int) -> None:
        """Say that a run has ended, which was to make ``steps`` steps."""
        self.n_ended += 1
        self.steps_ended += steps
        self._update()
        line = f"[{self.n_ended}/{self.n_runs}] {text}{self._left(self._steps_made())}"
        if self._progress.disable:
            print(line, flush=True)
        else:
            self._progress.console.print(line, markup=False, highlight=False)

    def _steps_made(self) -> int:
        return min(self.steps, self.steps_ended + self._steps_running())

    def _left(self, made: int) -> str:
        if made == 0 or made >= self.steps:
            return ""
        seconds = (time.monotonic() - self._start) * (self.steps - made) / made
        return f", about {timedelta(seconds=round(seconds))} left"

    def _description(self, made: int) -> str:
        return f"{self.n_ended} of {self.n_runs} runs{self._left(made)}"

    def _update(self) -> None:
        made = self._steps_made()
        self._progress.update(self._task, completed=made, description=self._description(made))

    def _watch(self) -> None:
        while not self._over.wait(2):
            self._update()
