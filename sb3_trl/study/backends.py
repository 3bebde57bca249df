"""Where jobs run: joblib's processes on this machine, or the cluster of Ray or Dask."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any, TypeAlias

from sb3_trl.study.jobs import Job, Outcome
from sb3_trl.study.reader import StudyError
from sb3_trl.study.run import train

__all__ = ["BACKENDS", "workers"]

#: Names of backends.
BACKENDS = ("loky", "ray", "dask")

#: Trains jobs side by side, which are taken one by one as places become free.
Train: TypeAlias = Callable[[Iterable[Job]], Iterator[list[Outcome]]]


@contextmanager
def workers(n_jobs: int, backend: str, address: str | None) -> Iterator[Train]:
    """Make processes that train; inside the block, the function gives what is left of each of its jobs as it ends.

    :param n_jobs: How many side by side; −1 for one on every core.
    :param backend: ``"loky"`` for processes of this machine, ``"ray"`` or ``"dask"`` for a cluster.
    :param address: Of the cluster; ``None`` for one on this machine, made for the occasion.
    :raises StudyError: if a backend is not installed, or cannot be used.
    """
    if backend not in BACKENDS:
        raise StudyError(f"backend {backend!r} is unknown: choose one of {', '.join(BACKENDS)}.")
    if backend == "loky" and address is not None:
        raise StudyError(f"--address {address} is that of a cluster: choose --backend ray or --backend dask.")
    try:
        from joblib import Parallel, delayed, parallel_config
    except ModuleNotFoundError as error:
        raise _not_installed("study", error) from error
    make: dict[str, Callable[..., Any]] = {"loky": _loky, "ray": _ray, "dask": _dask}
    with make[backend](n_jobs, address) as settings, parallel_config(**settings), ExitStack() as stack:
        # A cluster gets all jobs at once, and may grow; otherwise the next job starts when one has ended.
        waiting = "all" if n_jobs < 0 and backend != "loky" else "n_jobs"

        def train_all(jobs: Iterable[Job]) -> Iterator[list[Outcome]]:
            parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1, pre_dispatch=waiting)
            return stack.enter_context(closing(parallel(delayed(train)(job) for job in jobs)))

        try:
            yield train_all
        except Exception as error:
            if not _is_of_backend(error):
                raise
            message = "A process was lost, perhaps for want of memory (--jobs takes fewer at a time)"
            raise StudyError(f"{message}: {error}. What has finished is kept; the same command goes on.") from error


@contextmanager
def _loky(n_jobs: int, address: str | None) -> Iterator[dict[str, Any]]:
    yield {"backend": "loky", "inner_max_num_threads": 1}


@contextmanager
def _ray(n_jobs: int, address: str | None) -> Iterator[dict[str, Any]]:
    try:
        import ray

        from sb3_trl.study.ray_backend import RayTasks
    except ModuleNotFoundError as error:
        raise _not_installed("ray", error) from error
    is_ours = not ray.is_initialized()
    if is_ours:
        own: dict[str, Any] = {"include_dashboard": False, "num_cpus": n_jobs if n_jobs > 0 else None}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **({} if address else own))
        except (ConnectionError, ValueError) as error:
            raise StudyError(f"There is no Ray cluster at {address}: {error}") from error
    try:
        yield {"backend": RayTasks()}
    finally:
        if is_ours:
            ray.shutdown()


@contextmanager
def _dask(n_jobs: int, address: str | None) -> Iterator[dict[str, Any]]:
    try:
        from distributed import Client, LocalCluster
    except ModuleNotFoundError as error:
        raise _not_installed("dask", error) from error
    if address is None:
        cluster = LocalCluster(n_jobs if n_jobs > 0 else None, threads_per_worker=1, dashboard_address=None)
        with cluster, Client(cluster):
            yield {"backend": "dask"}
        return
    try:
        client = Client(address, timeout=30)
    except OSError as error:
        raise StudyError(f"There is no Dask scheduler at {address}: {error}") from error
    with client:
        shared = [worker for worker, threads in client.nthreads().items() if threads != 1]
        if shared:
            raise StudyError(
                f"{len(shared)} of the Dask workers have several threads, which would share one random stream: start "
                "them with dask worker --nthreads 1 --nworkers N."
            )
        yield {"backend": "dask"}


def _is_of_backend(error: Exception) -> bool:
    """Return whether an error is about a lost process; what goes wrong in a training comes back as its outcome."""
    return isinstance(error, BrokenExecutor) or type(error).__module__.partition(".")[0] in ("ray", "distributed")


def _not_installed(extra: str, error: Exception) -> StudyError:
    return StudyError(f'{error}. It comes with pip install "sb3-trl[{extra}]"')
