"""A joblib backend that makes a Ray task of every job.

Ray brings one of its own, made of actors. That one deals the jobs out in turns, so that some wait behind a long one
while another actor has nothing to do, and gives no result back before the last. Tasks go wherever a core is free, and
Ray starts them again should their machine be lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from joblib._parallel_backends import ParallelBackendBase

__all__ = ["RayTasks"]


class RayTasks(ParallelBackendBase):
    """Runs every job as a Ray task of one core, on a cluster that this process is connected to."""

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._running: set[ray.ObjectRef] = set()
        # One process for each task: nothing is left of the training before.
        self._call = ray.remote(num_cpus=1, max_calls=1)(_call)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return the number of jobs side by side: the cluster's cores, unless another is asked for."""
        return n_jobs if n_jobs is not None and n_jobs > 0 else max(1, int(ray.cluster_resources().get("CPU", 1)))

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Any:
        """Start a task, and return its future."""
        reference = self._call.remote(func)
        self._running.add(reference)
        future = reference.future()
        future.add_done_callback(lambda _: self._running.discard(reference))
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Any) -> Any:
        """Return what a task returned, or raise what it raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the tasks that run or wait."""
        for reference in list(self._running):
            ray.cancel(reference, force=True)


def _call(func: Callable[[], Any]) -> Any:
    return func()
