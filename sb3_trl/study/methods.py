"""The methods of a study: variants of algorithms, and whose models they start from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sb3_trl.study.reader import Entry, Pair, StudyError

__all__ = ["Method", "StartFrom", "check_starts", "read_start"]

_EXAMPLE = "{method: FixPO, task: HalfCheetah-v5}"


@dataclass(frozen=True)
class StartFrom:
    """What the runs of a method start from: those of another, on one task or each on its own.

    :param method: Label of the other method.
    :param task: Its task, ``None`` for that of the run.
    :param pairs: Where it stands in the study file.
    """

    method: str
    task: str | None
    pairs: Mapping[str, Pair] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Method:
    """A variant of an algorithm: a label, the algorithm's RL Zoo key and where its hyperparameters are.

    :param n_timesteps: Environment steps by task; a task that is not there has the study's.
    :param start_from: What its runs start from, ``None`` for new models.
    :param entry: Where it stands in the study file.
    """

    label: str
    algo: str
    conf_file: str | None
    params: dict[str, Any]
    tasks: tuple[str, ...]
    n_timesteps: Mapping[str, int]
    start_from: StartFrom | None
    entry: Entry = field(repr=False, compare=False)
    pairs: Mapping[str, Pair] = field(repr=False, compare=False)

    def start(self, task: str) -> tuple[str, str] | None:
        """Return the method and the task that a run on ``task`` starts from, ``None`` for a new model."""
        return None if self.start_from is None else (self.start_from.method, self.start_from.task or task)

    def error(self, message: str) -> StudyError:
        """Return an error with the line of the parameter that the message names, or else the method's."""
        params = self.pairs["params"].mapping("{n_epochs: 10}") if self.params else {}
        named = [pair for key, pair in params.items() if re.search(rf"\b{re.escape(key)}\b", message)]
        return (named[0] if named else self.entry).error(message)


def read_start(entry: Pair) -> StartFrom:
    """Read ``start_from`` of a method."""
    pairs = entry.keys(_EXAMPLE, {"method": True, "task": False})
    return StartFrom(pairs["method"].text(), pairs["task"].text() if "task" in pairs else None, pairs)


def check_starts(methods: Sequence[Method]) -> None:
    """Check that there are the runs that others start from, and that none waits for itself.

    :raises StudyError: for the first that is not so, with its line.
    """
    by_label = {method.label: method for method in methods}
    for method in methods:
        if method.start_from is not None:
            _check_start(method, method.start_from, by_label)
    for method in methods:
        for task in method.tasks:
            _check_order(method, task, by_label)


def _check_start(method: Method, start: StartFrom, by_label: Mapping[str, Method]) -> None:
    named = start.pairs["method"]
    if start.method not in by_label:
        raise named.unknown("method", by_label)
    theirs = by_label[start.method].tasks
    if start.task is not None and start.task not in theirs:
        raise start.pairs["task"].unknown(f"task of {start.method}", theirs)
    for task in method.tasks:
        if start.task is None and task not in theirs:
            raise named.error(
                f"{method.label} on {task} would start from {start.method} on {task}, of which there is no run: say "
                f"from which task, {{method: {start.method}, task: {theirs[0]}}}; allowed: {', '.join(theirs)}"
            )


def _check_order(method: Method, task: str, by_label: Mapping[str, Method]) -> None:
    """Go from a run to the one that it starts from, and so on, to one that begins anew."""
    seen = [(method.label, task)]
    while (start := by_label[seen[-1][0]].start(seen[-1][1])) is not None:
        if start in seen:
            circle = ", which starts from ".join(
                f"{label} on {task}" for label, task in [*seen[seen.index(start) :], start]
            )
            raise method.pairs["start_from"].error(f"{circle}: one of them must begin without start_from")
        seen.append(start)
