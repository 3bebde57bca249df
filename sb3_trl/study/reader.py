"""YAML that remembers its lines: what is wrong is said with the line that it stands in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from yaml.constructor import SafeConstructor

from sb3_trl.zoo.registry import closest

__all__ = ["Entry", "Pair", "StudyError", "compose", "optional"]

T = TypeVar("T")


class StudyError(ValueError):
    """What is wrong with a study, as its user is told."""


class Entry:
    """A node of a YAML file: its value, if it is of the kind that is asked for.

    Every method raises a ``StudyError`` that begins with ``file:line:`` if it is not.

    :param path: The file.
    :param node: The node.
    :param what: What it is called in messages.
    """

    def __init__(self, path: Path, node: yaml.Node, what: str) -> None:
        self.path = path
        self.node = node
        self.what = what

    @property
    def line(self) -> int:
        """Number of the line that the node begins in."""
        return self.node.start_mark.line + 1

    @property
    def is_mapping(self) -> bool:
        """Whether the node is a mapping."""
        return isinstance(self.node, yaml.MappingNode)

    @property
    def value(self) -> Any:
        """The node as Python's numbers, strings, lists and dicts."""
        try:
            return SafeConstructor().construct_object(self.node, deep=True)
        except yaml.MarkedYAMLError as error:
            raise self.error(f"{error.problem}") from error

    def error(self, message: str) -> StudyError:
        """Return the error that says ``message`` about this line."""
        return StudyError(f"{self.path}:{self.line}: {message}")

    def unknown(self, kind: str, allowed: Iterable[str]) -> StudyError:
        """Return the error for a name that is none of those allowed."""
        known = list(allowed)
        guess = closest(str(self.value), known) or ";"
        return self.error(f"unknown {kind} {self.value!r}{guess} allowed: {', '.join(known)}")

    def mapping(self, example: str) -> dict[str, Pair]:
        """Return the entries of a mapping by their keys."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error(f"{self.what} must be a mapping such as {example}, not {self._shown()}")
        lines: dict[str, int] = {}
        for node, _ in self.node.value:
            if node.tag == "tag:yaml.org,2002:merge":
                continue
            key = Entry(self.path, node, "a key")
            if key.text() in lines:
                raise key.error(f"{key.text()!r} is given twice, first in line {lines[key.text()]}")
            lines[key.text()] = key.line
        SafeConstructor().flatten_mapping(self.node)
        return {key.value: Pair(self.path, key, node) for key, node in self.node.value}

    def keys(self, example: str, allowed: Mapping[str, bool]) -> dict[str, Pair]:
        """Return the entries of a mapping that may have ``allowed`` keys, those that are ``True`` there must be."""
        pairs = self.mapping(example)
        for key, pair in pairs.items():
            if key not in allowed:
                raise pair.key.unknown("key", allowed)
        missing = [key for key, is_needed in allowed.items() if is_needed and key not in pairs]
        if missing:
            raise self.error(f"{self.what} needs {' and '.join(map(repr, missing))}; allowed: {', '.join(allowed)}")
        return pairs

    def entries(self, of: str) -> list[Entry]:
        """Return the items of a list that is not empty, and has nothing twice."""
        if not isinstance(self.node, yaml.SequenceNode) or not self.node.value:
            raise self.error(f"{self.what} must be a list of {of}, with one at least, not {self._shown()}")
        items = [Entry(self.path, node, f"an item of {self.what}") for node in self.node.value]
        seen: list[Any] = []
        for item in items:
            if item.value in seen:
                raise item.error(f"{item.value!r} is given twice in {self.what}")
            seen.append(item.value)
        return items

    def text(self) -> str:
        """Return a string."""
        if not isinstance(self.value, str):
            raise self.error(f"{self.what} must be a string, not {self._shown()}")
        return self.value

    def integer(self, least: int = 1, most: int | None = None) -> int:
        """Return a whole number; ``1e6`` is one, which YAML takes for a string."""
        value = self.value
        try:
            number = None if isinstance(value, bool) or value is None else float(value)
        except (TypeError, ValueError):
            number = None
        is_whole = number is not None and number.is_integer() and least <= number <= (most or float("inf"))
        if number is None or not is_whole:
            limits = f"of {least} or more" if most is None else f"from {least} to {most}"
            raise self.error(f"{self.what} must be a whole number {limits}, not {self._shown()}")
        return int(number)

    def _shown(self) -> str:
        return "a mapping" if self.is_mapping else repr(self.value)


class Pair(Entry):
    """A value in a mapping, and the entry that is its key."""

    def __init__(self, path: Path, key: yaml.Node, node: yaml.Node) -> None:
        self.key = Entry(path, key, "a key")
        super().__init__(path, node, repr(self.key.value))


def compose(path: Path) -> Entry:
    """Return the root of a YAML file.

    :raises StudyError: if there is no such file, or it is not YAML.
    """
    try:
        node = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    except OSError as error:
        raise StudyError(f"{path}: {error.strerror or error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise StudyError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}:1: not valid YAML: {error}") from error
    if node is None:
        raise StudyError(f"{path}:1: the file is empty")
    return Entry(path, node, "a study")


def optional(pairs: Mapping[str, Pair], key: str, read: Callable[[Pair], T], default: T) -> T:
    """Return what ``read`` makes of an entry that may be missing."""
    return read(pairs[key]) if key in pairs else default
