"""From a study file to its runs and jobs: hyperparameters are read, and every model is made once, before any trains."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from sb3_trl.study.description import Description, read_description
from sb3_trl.study.jobs import Job, Run
from sb3_trl.study.methods import Method
from sb3_trl.study.run import make_experiment

__all__ = ["SEEDS_TOGETHER", "Plan", "make_jobs", "make_plan"]

#: The most seeds of a batch: with more, a step of each costs no less, and all of them end together.
SEEDS_TOGETHER = 10


@dataclass(frozen=True)
class Group:
    """One variant on one task: a run for each seed."""

    method: Method
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Plan:
    """A study file, and the runs that it stands for, in its order."""

    description: Description
    groups: tuple[Group, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs."""
        return tuple(run for group in self.groups for run in group.runs)

    def method(self, run: Run) -> Method:
        """Return the method that a run is of."""
        return next(method for method in self.description.methods if method.label == run.variant)


def make_plan(path: Path, packages: Sequence[str] = ()) -> Plan:
    """Read a study file and its hyperparameters.

    :param path: The study file.
    :param packages: Modules that register environments.
    :raises StudyError: for what is wrong with the file, with its line.
    """
    import gymnasium as gym
    from rl_zoo3.utils import ALGOS

    from sb3_trl.zoo.experiment import hyperparameters_of
    from sb3_trl.zoo.registry import register

    register()
    for package in packages:
        importlib.import_module(package)
    arguments = {algo: hyperparameters_of(algo) for algo in ALGOS}
    description = read_description(path, gym.envs.registry.keys(), arguments)
    return Plan(description, _groups(description))


def make_jobs(plan: Plan, left: Sequence[Run], seed_batch: bool | None, job: Job) -> list[Job]:
    """Return the jobs that are left to do, after making one model of each group to see that it can be made.

    :param plan: All runs.
    :param left: Those that are left to do.
    :param seed_batch: Whether seeds train in batches where they can; ``None``: where compiling also pays.
    :param job: The rest of every job.
    :raises StudyError: for a model that cannot be made, or that does not fit the one it starts from, with its line.
    """
    jobs, trials = [], _Trials(plan, job)
    for group in plan.groups:
        chunks = [group.runs[i : i + SEEDS_TOGETHER] for i in range(0, len(group.runs), SEEDS_TOGETHER)]
        parts_left = [tuple(run for run in chunk if run in left) for chunk in chunks]
        if not any(parts_left):
            continue
        compiles = trials.of(group.runs[0]).compiles
        trials.check_start(group)
        for chunk, runs in zip(chunks, parts_left, strict=True):
            pays = compiles is not None and compiles(len(chunk))
            together = compiles is not None and (pays if seed_batch is None else seed_batch)
            parts = [runs] if together and runs else [(run,) for run in runs]
            jobs += [replace(job, runs=part, is_batch=together, compile=pays) for part in parts]
    return jobs


def _groups(description: Description) -> tuple[Group, ...]:
    """Return the groups of a study, in its order."""
    methods = {method.label: method for method in description.methods}
    made: dict[tuple[str, str], Group] = {}

    def make(label: str, task: str) -> Group:
        if (label, task) not in made:
            start = methods[label].start(task)
            made[label, task] = _group(description, methods[label], task, start and make(*start))
        return made[label, task]

    return tuple(make(method.label, task) for method in description.methods for task in method.tasks)


def _group(description: Description, method: Method, task: str, start: Group | None) -> Group:
    from sb3_trl.zoo.experiment import read_settings

    try:
        saved = read_settings(method.algo, task, method.conf_file, method.params)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise method.error(f"{method.label} on {task}: {error}") from error
    n_timesteps = method.n_timesteps.get(task) or description.n_timesteps.get(task) or int(saved["n_timesteps"])
    if description.eval_freq > n_timesteps:
        message = f"eval_freq {description.eval_freq} is more than the {n_timesteps} steps of {method.label} on {task}"
        raise (description.eval_freq_entry or method.entry).error(f"{message}: allowed: 1 to {n_timesteps}")
    run = Run(
        method.algo,
        method.label,
        task,
        0,
        n_timesteps,
        description.eval_freq,
        description.n_eval_episodes,
        saved | {"n_timesteps": n_timesteps},
    )
    starts = start.runs if start else [None] * len(description.seeds)
    pairs = zip(description.seeds, starts, strict=True)
    return Group(method, tuple(replace(run, seed=seed, start_from=own) for seed, own in pairs))


class _Trial(NamedTuple):
    """What is known of a group's models before any trains.

    :param compiles: Whether compiling pays for so many seeds together, ``None`` if they cannot train so.
    :param layout: What another must have in common with it that starts from it.
    """

    compiles: Callable[[int], bool] | None
    layout: Mapping[str, str]


class _Trials:
    """Makes a model of every group that it is asked for, once."""

    def __init__(self, plan: Plan, job: Job) -> None:
        self._plan, self._job = plan, job
        self._made: dict[tuple[str, str], _Trial] = {}

    def of(self, run: Run) -> _Trial:
        """Return what is known of models like a run's."""
        key = run.variant, run.task
        if key not in self._made:
            self._made[key] = _try(run, self._plan.method(run), self._job)
        return self._made[key]

    def check_start(self, group: Group) -> None:
        """Check that the models that a group starts from fit its own."""
        from sb3_trl.study.transfer import misfit

        run = group.runs[0]
        start = run.start_from
        if start is None:
            return
        difference = misfit(self.of(run).layout, self.of(start).layout)
        if difference is not None:
            raise group.method.pairs["start_from"].error(
                f"{run.variant} on {run.task} cannot start from {start.variant} on {start.task}: {difference}. Both "
                "need the same observations, actions, networks and normalisation."
            )


def _try(run: Run, method: Method, job: Job) -> _Trial:
    """Make a model of a run, and return what is known by it."""
    from sb3_trl.algorithms.base import TrustRegionAlgorithm
    from sb3_trl.seeds.batch import can_batch
    from sb3_trl.study.transfer import layout

    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        try:
            experiment = make_experiment(run, Path(folder), job.device)
            experiment.eval_freq = -1
            made: Any = experiment.setup_experiment()
            experiment.evaluation_envs()
        except Exception as error:
            raise method.error(f"{method.label} on {run.task}: {error or type(error).__name__}") from error
        model = made[0]
        own = layout(model)
        model.env.close()
    if not isinstance(model, TrustRegionAlgorithm) or not can_batch(model) or not experiment.deterministic_eval:
        return _Trial(None, own)
    if model.compile != "auto":
        return _Trial(lambda n_seeds: bool(model.compile), own)
    return _Trial(lambda n_seeds: model._repays_compiling(n_seeds * run.n_timesteps), own)
