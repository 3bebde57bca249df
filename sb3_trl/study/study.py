"""A study: algorithms × tasks × seeds, trained one after the other or side by side, and their results as a table."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from sb3_trl.study.backends import workers
from sb3_trl.study.description import file_name
from sb3_trl.study.jobs import CHECKPOINT_MINUTES, Job, Outcome, Run, waves
from sb3_trl.study.plan import Plan, make_jobs, make_plan
from sb3_trl.study.progress import Display
from sb3_trl.study.reader import StudyError
from sb3_trl.study.selection import Selection
from sb3_trl.study.store import Store

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Study"]


class Study:
    """The runs that a study file describes, and the folder that keeps them.

    :param plan: The runs.
    :param out: The folder; ``None`` for ``studies/<name>``.
    :param packages: Modules that register environments.
    :param selection: The runs to train, of those of the plan; ``None`` for all.
    :raises StudyError: for a selection that names what the plan does not have.
    """

    def __init__(
        self,
        plan: Plan,
        out: str | Path | None = None,
        packages: Sequence[str] = (),
        selection: Selection | None = None,
    ) -> None:
        self.plan = plan
        self.selection = selection or Selection()
        self.selection.check(plan.runs)
        self.packages = tuple(packages)
        self.store = Store(Path("studies", file_name(self.name)) if out is None else Path(out))

    @classmethod
    def load(
        cls,
        path: str | Path,
        out: str | Path | None = None,
        packages: Sequence[str] = (),
        selection: Selection | None = None,
    ) -> Study:
        """Read a study file.

        :param path: The file.
        :param out: Folder of the results, ``studies/<name>`` by default.
        :param packages: Modules that register environments.
        :param selection: The runs to train, of those of the file; ``None`` for all.
        :raises StudyError: for what is wrong with the file, with its line, or with the selection.
        """
        return cls(make_plan(Path(path), packages), out, packages, selection)

    @property
    def name(self) -> str:
        """The study's name."""
        return self.plan.description.name

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, in the order of the file."""
        return self.plan.runs

    @property
    def finished(self) -> list[Run]:
        """The runs that have finished."""
        return [run for run in self.runs if self.store.is_finished(run)]

    def jobs(
        self,
        seed_batch: bool | None = None,
        device: str = "cpu",
        rerun_changed: bool = False,
        checkpoint_minutes: float = CHECKPOINT_MINUTES,
    ) -> list[Job]:
        """Return what is left to do, one process each; arguments as in ``run``.

        :raises StudyError: for a model that cannot be made, or a run that has begun with other settings.
        """
        finished, changed = self.finished, self._changed()
        if changed and not rerun_changed:
            raise self._refusal(changed[0])
        job = Job(
            (),
            device=device,
            packages=self.packages,
            folder=str(self.store.folder.resolve()),
            checkpoint_minutes=checkpoint_minutes,
            study_process=os.getpid(),
        )
        left = [run for run in self.runs if run in self.selection and (run not in finished or run in changed)]
        self._check_starts(left)
        return make_jobs(self.plan, left, seed_batch, job)

    def run(
        self,
        jobs: int = -1,
        backend: str = "loky",
        address: str | None = None,
        seed_batch: bool | None = None,
        device: str = "cpu",
        rerun_changed: bool = False,
        checkpoint_minutes: float = CHECKPOINT_MINUTES,
    ) -> list[Run]:
        """Train what has not finished yet, and return the runs that failed, or were to start from one that did.

        Whatever ends it, runs that had finished are kept, and the next call goes on with the others: those that had
        begun from their last checkpoint.

        :param jobs: How many processes side by side; −1 for one on every core.
        :param backend: ``"loky"`` for this machine, ``"ray"`` or ``"dask"`` for a cluster.
        :param address: Of the cluster; ``None`` for one on this machine.
        :param seed_batch: Whether seeds of one variant on one task train side by side in one process, where the
            algorithm can; ``None``: where compiling also pays.
        :param device: Torch's device.
        :param rerun_changed: Train runs again whose settings have changed since they began, rather than refuse.
        :param checkpoint_minutes: A run's checkpoint is written at most so often.
        :raises StudyError: for a model that cannot be made, or a run that has begun with other settings.
        """
        with self.store:
            for run in self.store.drop_damaged(self.runs):
                print(f"{run}: its checkpoint cannot be read, so that it begins anew.", flush=True)
            left = self.jobs(seed_batch, device, rerun_changed, checkpoint_minutes)
            self.store.remove(self._changed())
            self.store.write_results(self.name, self.runs)
            self.store.write_plan(run for run in self.runs if run in self.selection or self.store.is_finished(run))
            try:
                return self._train(left, jobs, backend, address)
            finally:  # Ctrl-C may have come while a result was being kept
                self.store.recover()
                self.store.write_results(self.name, self.runs)

    def results(self) -> pd.DataFrame:
        """Return the rows of all finished runs."""
        import pandas as pd

        return pd.read_csv(self.store.results)

    def _train(self, left: Sequence[Job], jobs: int, backend: str, address: str | None) -> list[Run]:
        failed: list[Run] = []
        runs = [run for job in left for run in job.runs]
        if not left:
            return failed
        steps = {str(run): run.n_timesteps - self.store.steps_begun(run) for run in runs}
        display = Display(
            len(self.runs), len(self.runs) - len(runs), sum(steps.values()), lambda: self.store.statuses(runs)
        )
        with display, workers(jobs, backend, address) as train_all:
            for wave in waves(left):
                ready, lost = _ready(wave, failed)
                for results in chain(lost, train_all(map(self._with_starts, ready))):
                    self.store.keep(results)
                    self.store.write_results(self.name, self.runs)
                    for outcome in results:
                        self.store.forget_status(outcome.run)
                        failed += [outcome.run] if outcome.error else []
                        display.ended(f"{outcome.run}: {self._end(outcome, failed)}", steps[str(outcome.run)])
        return failed

    def _with_starts(self, job: Job) -> Job:
        """Return a job with the models that its runs start from."""
        return replace(job, starts={run.seed: self.store.start(run.start_from) for run in job.runs if run.start_from})

    def _end(self, outcome: Outcome, failed: Sequence[Run]) -> str:
        """Return how a run has ended."""
        if outcome.error is not None:
            could_begin = outcome.run.start_from not in failed
            return f"FAILED ({self.store.error_path(outcome.run)})" if could_begin else outcome.error
        rows = list(csv.DictReader(io.StringIO(outcome.files["rows.csv"].decode())))
        return f"finished, return {float(rows[-1]['eval_return']):.4g}" if rows else "finished"

    def _check_starts(self, left: Sequence[Run]) -> None:
        """Check that whatever the runs that are left start from is there, or is trained before them."""
        for run in left:
            start = run.start_from
            if start is None or start in left or (self.store.is_finished(start) and not self.store.differences(start)):
                continue
            state = "was trained with other settings" if self.store.is_finished(start) else "has not finished"
            entry = self.plan.method(run).pairs["start_from"]
            raise entry.error(
                f"{run} starts from {start}, which {state} and is not among the runs to train: choose it too, with "
                f"--variants {start.variant!r}, --tasks {start.task} and --seeds {start.seed}"
            )

    def _changed(self) -> list[Run]:
        there = [run for run in self.runs if self.store.is_finished(run) or self.store.begun(run)]
        return [run for run in there if run in self.selection and self.store.differences(run)]

    def _refusal(self, run: Run) -> StudyError:
        differences = self.store.differences(run).items()
        changes = ", ".join(f"{key} {old!r}, now {new!r}" for key, (old, new) in differences)
        begun = "trained" if self.store.is_finished(run) else "begun"
        return self.plan.method(run).error(
            f"{run} was {begun} with other settings: {changes}. Give this study another name or --out, or train such "
            "runs again with --rerun-changed."
        )


def describe(study: Study, jobs: Sequence[Job]) -> str:
    """Return the jobs as text, a line for each."""
    lines = [f"{len(study.finished)} of {len(study.runs)} runs have finished; {len(jobs)} jobs are left."]
    for job in jobs:
        first, seeds = job.runs[0], ", ".join(str(run.seed) for run in job.runs)
        kind = "seeds side by side:" if len(job.runs) > 1 else "seed"
        begun = sorted({study.store.steps_begun(run) for run in job.runs})
        goes_on = f"; goes on from step {' or '.join(map(str, begun))}" if any(begun) else ""
        start = f", from {first.start_from.variant} on {first.start_from.task}" if first.start_from else ""
        lines.append(f"  {first.variant} on {first.task}{start}, {first.n_timesteps} steps, {kind} {seeds}{goes_on}")
    return "\n".join(lines)


def failures(study: Study, failed: Sequence[Run]) -> str:
    """Return as text which runs failed, and which could not begin for that, a line for each.

    :param study: The study.
    :param failed: What its ``run`` returned.
    """
    lost = [run for run in failed if run.start_from in failed]
    lines = [f"{len(failed) - len(lost)} runs failed:"]
    lines += [f"  {run}: {study.store.error_path(run)}" for run in failed if run not in lost]
    lines += [f"{len(lost)} runs could not begin:"] if lost else []
    lines += [f"  {run}: it starts from {run.start_from}" for run in lost]
    return "\n".join(lines)


def _ready(wave: Sequence[Job], failed: Sequence[Run]) -> tuple[list[Job], list[list[Outcome]]]:
    """Return the jobs of a wave without the runs that cannot begin, and what is said of those."""
    parts = [replace(job, runs=tuple(run for run in job.runs if run.start_from not in failed)) for job in wave]
    lost = [
        Outcome(run, {}, f"not run: it starts from {run.start_from}, which has not finished")
        for job in wave
        for run in job.runs
        if run.start_from in failed
    ]
    return [job for job in parts if job.runs], [lost] if lost else []
