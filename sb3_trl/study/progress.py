"""What is seen of a running study: a bar with the time left, what trains now, and a line for every run that ends."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from sb3_trl.study.jobs import Run
from sb3_trl.study.status import Status

__all__ = ["Display", "running_lines"]

#: Without a terminal, what trains now is printed after so many seconds again.
_SECONDS_BETWEEN_LINES = 600


class Display:
    """Shows how far a study is while it is a context, on a terminal with a bar that moves.

    :param n_runs: Runs of the study.
    :param n_finished: Those that have finished before.
    :param steps: Environment steps that are left.
    :param running: Returns the runs that train now, and how far they are.
    """

    def __init__(
        self, n_runs: int, n_finished: int, steps: int, running: Callable[[], Sequence[tuple[Run, Status]]]
    ) -> None:
        self.n_runs, self.n_ended = n_runs, n_finished
        self.steps, self.steps_ended = steps, 0
        self._running = running
        self._start = self._last_lines = time.monotonic()
        self._over = threading.Event()
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        self._progress = _Progress(
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
        made = self.update()
        line = f"[{self.n_ended}/{self.n_runs}] {text}{self._left(made)}"
        if self._progress.disable:
            print(line, flush=True)
        else:
            self._progress.console.print(line, markup=False, highlight=False)

    def update(self) -> int:
        """Show what is known now, and return how many steps have been made."""
        running = self._running()
        made = min(self.steps, self.steps_ended + sum(status.steps - status.first for _, status in running))
        self._progress.lines = running_lines(running)
        self._progress.update(self._task, completed=made, description=self._description(made))
        is_time = time.monotonic() > self._last_lines + _SECONDS_BETWEEN_LINES
        if self._progress.disable and running and is_time:
            print(*self._progress.lines, sep="\n", flush=True)
            self._last_lines = time.monotonic()
        return made

    def _left(self, made: int) -> str:
        if made == 0 or made >= self.steps:
            return ""
        seconds = (time.monotonic() - self._start) * (self.steps - made) / made
        return f", about {timedelta(seconds=round(seconds))} left"

    def _description(self, made: int) -> str:
        return f"{self.n_ended} of {self.n_runs} runs{self._left(made)}"

    def _watch(self) -> None:
        while not self._over.wait(2):
            self.update()


class _Progress(Progress):
    """A bar with lines below it."""

    lines: Sequence[str] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from map(Text, self.lines)


def running_lines(running: Sequence[tuple[Run, Status]]) -> list[str]:
    """Return what trains now: a line for every variant on a task, with the latest evaluations' mean over its seeds."""
    groups: dict[tuple[str, str], list[tuple[Run, Status]]] = {}
    for run, status in running:
        groups.setdefault((run.variant, run.task), []).append((run, status))
    return [_line(own) for own in groups.values()]


def _line(running: Sequence[tuple[Run, Status]]) -> str:
    first = running[0][0]
    seeds = ", ".join(str(run.seed) for run, _ in running)
    steps = round(sum(status.steps for _, status in running) / len(running))
    returns = [status.eval_return for _, status in running if status.eval_return is not None]
    latest = f", return {sum(returns) / len(returns):.4g}" if returns else ""
    name = f"{first.variant} on {first.task}, seed{'s' if len(running) > 1 else ''} {seeds}"
    return f"  {name}: {steps} of {first.n_timesteps} steps{latest}"
