"""One row of numbers for every evaluation of a run."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback

from sb3_trl.study.jobs import Run
from sb3_trl.study.status import Status
from sb3_trl.study.task_rows import BY_TASK, LABELS, TASK_COLUMNS, mean, task_of, task_rows
from sb3_trl.version import __version__

__all__ = ["COLUMNS", "LATER_COLUMNS", "VERSIONS", "Rows", "installed_versions"]

#: Packages on whose versions the numbers depend.
VERSIONS = ("sb3_trl", "torch", "mujoco", "gymnasium", "stable_baselines3")

#: Columns of ``results.csv``.
COLUMNS = (
    *LABELS,
    "eval_return",
    "eval_return_std",
    "eval_success",
    "train_return",
    "train_success",
    "kl_mean",
    "kl_spread",
    "kl_max",
    "mean_distance",
    "cov_distance",
    "entropy",
    "std",
    "violation_fraction",
    "projected_fraction",
    "beta",
    "fixup_share",
    "bounded_kl_max",
    "rollbacks",
    "seconds",
    "resumed",
    *VERSIONS,
)

#: Those that came with later versions: runs of earlier ones have nothing there.
LATER_COLUMNS = ("eval_success", "train_success", "bounded_kl_max", "rollbacks", "resumed")

#: Columns that are means over updates, and the keys that updates log.
MEANS = {
    "kl_mean": "trust_region/kl_mean",
    "mean_distance": "trust_region/mean_distance_mean",
    "cov_distance": "trust_region/cov_distance_mean",
    "entropy": "trust_region/entropy",
    "std": "train/std",
    "violation_fraction": "trust_region/violation_fraction",
    "projected_fraction": "trust_region/projected_fraction",
    "beta": "fixpo/beta",
    "fixup_share": "fixpo/fixup_share",
}
#: Columns that are the largest of the updates'. Rollbacks are counted from the beginning of training.
LARGEST = {
    "kl_max": ("trust_region/kl_max",),
    "bounded_kl_max": ("fixpo/kl_max",),
    "rollbacks": ("fixpo/rollbacks", "trust_region/rollbacks"),
}
KEYS = {*MEANS.values(), *chain(*LARGEST.values())}


class Rows(BaseCallback):
    """Make a row of every evaluation: its returns and successes, and what the updates since the one before logged.

    It comes after the evaluation's callback, and after those that log.

    :param run: The run.
    :param evaluation: Evaluates, and keeps the returns.
    :param report: Called at the beginning of every rollout with how far training is; ``None`` if nobody asks.
    """

    def __init__(self, run: Run, evaluation: EvalCallback, report: Callable[[Status], None] | None) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []
        self.task_rows: list[dict[str, Any]] = []
        #: How often the run has gone on from a checkpoint.
        self.resumed = 0
        self._seconds_before = 0.0
        self._evaluation = evaluation
        self._report = report
        self._updates: list[dict[str, float]] = []
        self._labels = {
            "algorithm": run.algorithm,
            "variant": run.variant,
            "task": run.task,
            "seed": run.seed,
        }
        self._versions = installed_versions()

    @property
    def seconds(self) -> float:
        """Wall-clock time of training, with that before the checkpoint that it goes on from."""
        return self._seconds_before + time.perf_counter() - self._start

    @property
    def state(self) -> dict[str, Any]:
        """What the rows go on from, if training is interrupted."""
        return {
            "rows": self.rows,
            "task_rows": self.task_rows,
            "updates": self._updates,
            "seconds": self.seconds,
            "resumed": self.resumed,
        }

    def go_on(self, state: dict[str, Any]) -> None:
        """Go on from the ``state`` that a training had which was interrupted."""
        self.rows, self.task_rows, self._updates = state["rows"], state.get("task_rows", []), state["updates"]
        self._seconds_before, self.resumed = state["seconds"], state["resumed"] + 1

    def files(self) -> dict[str, bytes]:
        """Return the rows as CSV, without the study's name, by file; those of tasks if there are any."""
        files = {"rows.csv": _csv(self.rows, COLUMNS[1:])}
        return files | ({BY_TASK: _csv(self.task_rows, TASK_COLUMNS[1:])} if self.task_rows else {})

    def _on_training_start(self) -> None:
        self._start = time.perf_counter()
        self._first = self.num_timesteps

    def _on_rollout_start(self) -> None:
        """Keep what the last update logged: the log is not written, and then empty, before the rollout ends."""
        self._keep_logged(lambda key: key in KEYS or (task_of(key) is not None and not _is_of_rollout(key)))
        if self._report is not None:
            latest = float(self.rows[-1]["eval_return"]) if self.rows else None
            self._report(Status(self.num_timesteps, self._first, latest))

    def _on_rollout_end(self) -> None:
        """Keep what is logged of each task's episodes: the log is written before the update."""
        self._keep_logged(lambda key: task_of(key) is not None and _is_of_rollout(key))

    def _on_step(self) -> bool:
        if len(self._evaluation.evaluations_results) > len(self.rows):
            self.rows.append(self._row())
            labels = {**self._labels, "step": self.num_timesteps}
            self.task_rows += task_rows(labels, getattr(self._evaluation, "by_task", {}), self._updates)
            self._updates = []
        return True

    def _keep_logged(self, counts: Callable[[str], bool]) -> None:
        logged = {key: float(value) for key, value in self.logger.name_to_value.items() if counts(key)}
        if logged:
            self._updates.append(logged)

    def _row(self) -> dict[str, Any]:
        returns = self._evaluation.evaluations_results[-1]
        # Without a word on success in any episode's last info there are none.
        successes = (self._evaluation.evaluations_successes or [[]])[-1]
        episodes = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        kl = self._logged("trust_region/kl_mean")
        return {
            **self._labels,
            "step": self.num_timesteps,
            "eval_return": np.mean(returns),
            "eval_return_std": np.std(returns),
            "eval_success": mean(successes),
            "train_return": mean(episodes),
            "train_success": mean(self.model.ep_success_buffer),
            **{column: mean(self._logged(key)) for column, key in MEANS.items()},
            "kl_spread": np.std(kl) if kl else None,
            **{column: max(self._logged(*keys), default=None) for column, keys in LARGEST.items()},
            "seconds": round(self.seconds, 1),
            "resumed": self.resumed,
            **self._versions,
        }

    def _logged(self, *keys: str) -> list[float]:
        return [update[key] for update in self._updates for key in keys if key in update]


def _is_of_rollout(key: str) -> bool:
    return key.startswith("rollout/")


def _csv(rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _shown(value) for key, value in row.items()} for row in rows)
    return text.getvalue().encode()


def _shown(value: Any) -> Any:
    return f"{value:.8g}" if isinstance(value, float) else value


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages on which numbers depend."""
    return {"sb3_trl": __version__} | {name: _version(name) for name in VERSIONS[1:]}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
