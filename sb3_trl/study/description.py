"""Study files: which algorithms train on which tasks with which seeds.

What stands in a file is checked here; what the hyperparameters mean is the RL Zoo's business (``plan``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sb3_trl.study.methods import Method, check_starts, read_start
from sb3_trl.study.reader import Entry, Pair, StudyError, compose, optional

__all__ = ["Description", "file_name", "read_description"]

#: Keys of a study file; those that are ``True`` must be there.
STUDY_KEYS = {
    "name": False,
    "tasks": True,
    "seeds": True,
    "n_timesteps": False,
    "eval_freq": False,
    "n_eval_episodes": False,
    "methods": True,
}
METHOD_KEYS = {
    "algo": True,
    "conf_file": False,
    "params": False,
    "tasks": False,
    "n_timesteps": False,
    "start_from": False,
}

#: Arguments of algorithms that the study sets itself.
RESERVED = ("env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model", "n_timesteps")

#: The defaults of ``sb3-trl train``.
EVAL_FREQ, N_EVAL_EPISODES = 25_000, 5

_MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Description:
    """What a study file says.

    :param n_timesteps: Environment steps by task; a task that is not there has those of the hyperparameter file.
    """

    path: Path
    name: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    n_timesteps: Mapping[str, int]
    eval_freq: int
    n_eval_episodes: int
    methods: tuple[Method, ...]
    eval_freq_entry: Entry | None = field(repr=False, compare=False)


def read_description(
    path: Path, known_tasks: Collection[str], arguments: Mapping[str, Collection[str] | None]
) -> Description:
    """Read a study file and check it.

    :param path: The file.
    :param known_tasks: Gymnasium's environments.
    :param arguments: RL Zoo keys of the algorithms, with the hyperparameters that each takes, ``None`` for any.
    :raises StudyError: for the first thing that is wrong, with its line.
    """
    root = compose(path)
    pairs = root.keys("{tasks: [HalfCheetah-v5], seeds: 3, methods: {TRPL: {algo: trpl}}}", STUDY_KEYS)
    tasks = _tasks(pairs["tasks"], known_tasks)
    methods = pairs["methods"].mapping("{TRPL: {algo: trpl}}")
    if not methods:
        raise pairs["methods"].error("methods must have one at least, such as {TRPL: {algo: trpl}}")
    _check_folders(methods.values())
    own = tuple(_method(pair, tasks, arguments) for pair in methods.values())
    check_starts(own)
    return Description(
        path,
        optional(pairs, "name", Pair.text, path.stem),
        tasks,
        _seeds(pairs["seeds"]),
        _n_timesteps(pairs["n_timesteps"], tasks) if "n_timesteps" in pairs else {},
        optional(pairs, "eval_freq", Pair.integer, EVAL_FREQ),
        optional(pairs, "n_eval_episodes", Pair.integer, N_EVAL_EPISODES),
        own,
        pairs.get("eval_freq"),
    )


def file_name(label: str) -> str:
    """Return a label as the name of a file: ``"a/b (c)"`` is ``"a-b_c"``."""
    return re.sub(r"[^\w.+=-]+", "_", label.replace("/", "-")).strip("_.") or "_"


def _tasks(entry: Pair, known: Collection[str]) -> tuple[str, ...]:
    items = entry.entries("environment ids")
    for item in items:
        if item.text() not in known:
            raise _unknown_task(item, known)
    return tuple(item.text() for item in items)


def _unknown_task(item: Entry, known: Collection[str]) -> StudyError:
    import difflib

    close = difflib.get_close_matches(item.text(), known, n=3)
    guess = f", did you mean {' or '.join(map(repr, close))}?" if close else ";"
    return item.error(
        f"unknown task {item.text()!r}{guess} allowed: the {len(known)} environments that Gymnasium knows "
        "(--gym-packages imports packages that bring others)"
    )


def _n_timesteps(entry: Pair, tasks: tuple[str, ...]) -> dict[str, int]:
    """Return the steps of each task, from one number for all or a mapping of tasks to numbers."""
    if not entry.is_mapping:
        return dict.fromkeys(tasks, entry.integer())
    pairs = entry.mapping("{CartPole-v1: 100000}")
    for task, pair in pairs.items():
        if task not in tasks:
            raise pair.key.unknown("task", tasks)
    return {task: pair.integer() for task, pair in pairs.items()}


def _seeds(entry: Pair) -> tuple[int, ...]:
    if isinstance(entry.value, list):
        return tuple(item.integer(0, _MAX_SEED) for item in entry.entries("seeds"))
    return tuple(range(entry.integer(1, _MAX_SEED)))


def _method(pair: Pair, tasks: tuple[str, ...], arguments: Mapping[str, Collection[str] | None]) -> Method:
    label = pair.key.text()
    pair.what = f"method {label!r}"
    pairs = pair.keys("{algo: trpl, conf_file: trpl_paper.yml}", METHOD_KEYS)
    algo = pairs["algo"].text()
    if algo not in arguments:
        raise pairs["algo"].unknown("algorithm", sorted(arguments))
    own_tasks = _own_tasks(pairs["tasks"], tasks) if "tasks" in pairs else tasks
    return Method(
        label,
        algo,
        _conf_file(pairs["conf_file"], algo) if "conf_file" in pairs else _conf_file(None, algo),
        _params(pairs["params"], algo, arguments[algo]) if "params" in pairs else {},
        own_tasks,
        _n_timesteps(pairs["n_timesteps"], own_tasks) if "n_timesteps" in pairs else {},
        read_start(pairs["start_from"]) if "start_from" in pairs else None,
        pair.key,
        pairs,
    )


def _conf_file(entry: Pair | None, algo: str) -> str | None:
    """Return the path of the hyperparameter file: beside the study file, from here, or of the package."""
    from sb3_trl.zoo.experiment import find_configuration
    from sb3_trl.zoo.registry import hyperparameter_files

    if entry is None:
        return find_configuration(None, algo)
    name = entry.text()
    beside = entry.path.parent / name
    if beside.is_file():
        return str(beside)
    if Path(name).suffix not in (".yml", ".yaml"):
        raise entry.error(f"conf_file {name!r} must be a YAML file, .yml or .yaml")
    if not Path(name).is_file() and name not in hyperparameter_files():
        raise entry.unknown("conf_file", [*hyperparameter_files(), "or the path of a file"])
    return find_configuration(name, algo)


def _params(entry: Pair, algo: str, known: Collection[str] | None) -> dict[str, Any]:
    allowed = sorted(set(known or ()) - set(RESERVED))
    pairs = entry.mapping("{projection: kl}")
    for key, pair in pairs.items():
        if key in RESERVED:
            where = "as n_timesteps of the study, or of a method" if key == "n_timesteps" else "by the study itself"
            raise pair.key.error(f"{key!r} is set {where}, not in params; allowed: {', '.join(allowed)}")
        if known is not None and key not in allowed:
            raise pair.key.unknown(f"hyperparameter of {algo}", allowed)
    return {key: pair.value for key, pair in pairs.items()}


def _own_tasks(entry: Pair, tasks: tuple[str, ...]) -> tuple[str, ...]:
    items = entry.entries("the study's tasks")
    for item in items:
        if item.text() not in tasks:
            raise item.unknown("task", tasks)
    return tuple(task for task in tasks if task in [item.text() for item in items])


def _check_folders(methods: Collection[Pair]) -> None:
    """Two labels may not have one folder."""
    folders: dict[str, str] = {}
    for pair in methods:
        label = pair.key.text()
        other = folders.setdefault(file_name(label).lower(), label)
        if other != label:
            raise pair.key.error(f"{label!r} and {other!r} would have the same folder: change one of the labels")
