"""The papers' studies at several scales, from ``studies/*.yml`` and ``scales.yml``."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = ["SCALES", "Part", "paper_studies", "scale_settings", "scaled_study", "seconds"]

FOLDER = Path(__file__).parent
SCALES = ("smoke", "small", "paper")

#: Environment steps per second of one run on one core, without evaluations; for estimates of time.
SPEED = {
    "trpl": 2300,
    "papi": 2000,
    "lean_ppo": 4500,
    "ppo": 1800,
    "trpo": 1500,
    "lean_trpo": 2500,
    "fixpo": 8000,
    "recurrent_fixpo": 1500,
    "lean_recurrent_ppo": 1700,
}
#: Seconds that a step takes longer than one of MuJoCo's tasks, by the beginning of a task's id.
SLOWER = {"sb3_trl/MetaWorld": 1 / 4000}
SPEED_OF_EVALUATION, LENGTH_OF_EPISODE, SECONDS_TO_START = 6000, 700, 2


@dataclass(frozen=True)
class Part:
    """The runs of a study that a figure shows.

    :param study: Name of a file in ``studies/``.
    :param methods: Labels of its methods.
    :param tasks: Some of its tasks, ``None`` for all that the methods have.
    """

    study: str
    methods: tuple[str, ...]
    tasks: tuple[str, ...] | None = None

    def has(self, method: str, task: str) -> bool:
        """Return whether the runs of a method on a task belong to it."""
        return method in self.methods and (self.tasks is None or task in self.tasks)


@cache
def paper_studies() -> dict[str, Path]:
    """Return the study files that come with the package, by name."""
    return {path.stem: path for path in sorted((FOLDER / "studies").glob("*.yml"))}


@cache
def scale_settings(scale: str) -> dict[str, Any]:
    """Return what ``scales.yml`` says of a scale."""
    return yaml.safe_load((FOLDER / "scales.yml").read_text())[scale]


def scaled_study(name: str, scale: str) -> dict[str, Any] | None:
    """Return the content of a study file at a scale, ``None`` if the scale leaves the study out.

    :param name: Of the study.
    :param scale: One of ``SCALES``.
    """
    changes = scale_settings(scale).get(name, {})
    if changes is None:
        return None
    study = yaml.safe_load(paper_studies()[name].read_text())
    tasks = changes.get("tasks", study["tasks"])
    methods = {}
    for label, method in study["methods"].items():
        own = [task for task in method.get("tasks", tasks) if task in tasks]
        params = changes.get("params", {}).get(method["algo"], {}) | method.get("params", {})
        methods[label] = method | {"params": params, "tasks": own}
    methods = _startable({label: method for label, method in methods.items() if method["tasks"]})
    changes = {key: value for key, value in changes.items() if key != "params"}
    return copy.deepcopy({"name": name} | study | changes | {"tasks": tasks, "methods": methods})


def _startable(methods: dict[str, Any]) -> dict[str, Any]:
    """Return the methods without those that start from a run which is left out."""

    def starts(method: dict[str, Any]) -> bool:
        start = method.get("start_from")
        if start is None:
            return True
        tasks = {start["task"]} if "task" in start else {*method["tasks"]}
        return tasks <= {*methods.get(start["method"], {"tasks": ()})["tasks"]}

    kept = {label: method for label, method in methods.items() if starts(method)}
    return kept if len(kept) == len(methods) else _startable(kept)


def seconds(parts: Iterable[Part], scale: str) -> float:
    """Return roughly the time of all runs of the parts at a scale on one core, in seconds."""
    by_study: dict[str, list[Part]] = {}
    for part in parts:
        by_study.setdefault(part.study, []).append(part)
    return sum(_seconds(scaled_study(name, scale), own) for name, own in by_study.items())


def _seconds(study: dict[str, Any] | None, parts: list[Part]) -> float:
    if study is None:
        return 0.0
    steps = study["n_timesteps"]
    evaluated = steps / study["eval_freq"] * study["n_eval_episodes"] * LENGTH_OF_EPISODE
    around = SECONDS_TO_START + evaluated / SPEED_OF_EVALUATION
    runs = [
        (method["algo"], sum(slower for prefix, slower in SLOWER.items() if task.startswith(prefix)))
        for label, method in study["methods"].items()
        for task in method["tasks"]
        if any(part.has(label, task) for part in parts)
    ]
    return study["seeds"] * sum(around + steps / SPEED[algo] + (steps + evaluated) * slower for algo, slower in runs)
