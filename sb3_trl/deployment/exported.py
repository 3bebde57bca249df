"""An exported policy, read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sb3_trl.deployment.formats import FORMATS, format_of

__all__ = ["ExportedPolicy"]


class ExportedPolicy:
    """A file that ``export`` wrote: its metadata, and its actions.

    :param path: The file; its suffix says the format.
    :raises ValueError: if it is no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.format = format_of(self.path)
        if not self.path.is_file():
            raise ValueError(f"{str(path)!r}: there is no such file.")
        self._run, text = FORMATS[self.format].read(self.path)
        if not text:
            raise ValueError(f"{str(path)!r} has no metadata of sb3_trl: it was not written by export().")
        #: What the file is, takes, gives, and has inside.
        self.metadata: dict[str, Any] = json.loads(text)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{port['name']}: {port['dtype']}{port['shape']}" for port in self.metadata["inputs"])
        return f"ExportedPolicy({str(self.path)!r}, {self.metadata['algorithm']}, {inputs})"

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return all outputs by name; names with dots are given as ``policy(**{"observation.goal": goal})``.

        :param inputs: By name, as the metadata lists them.
        :raises ValueError: if one is missing or unknown.
        """
        return self.run(inputs)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return all outputs by name.

        :param inputs: By name, as the metadata lists them; they are converted to the file's types.
        :raises ValueError: if one is missing or unknown.
        """
        ports = self.metadata["inputs"]
        names = [port["name"] for port in ports]
        if inputs.keys() != set(names):
            raise ValueError(f"The policy takes {', '.join(names)}, not {', '.join(inputs) or 'nothing'}.")
        arrays = [np.ascontiguousarray(inputs[port["name"]], dtype=port["dtype"]) for port in ports]
        outputs = [port["name"] for port in self.metadata["outputs"]]
        return dict(zip(outputs, self._run(arrays), strict=True))
