"""What a table or figure of the papers is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sb3_trl.papers.scales import Part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Item",
    "Results",
]


@dataclass(frozen=True)
class Results:
    """What a figure is drawn from.

    :param table: Results of its runs.
    :param last: Number of evaluations behind a final result.
    :param random: Return of random play, by task.
    :param recording_steps: Steps of the recording behind FixPO's Fig. 2.
    :param cache: Where what is not in the table is kept.
    :param read_only: Draw what is kept; train nothing.
    """

    table: pd.DataFrame
    last: int
    random: Mapping[str, float] = field(default_factory=dict)
    recording_steps: int = 0
    cache: Path = Path()
    read_only: bool = False


@dataclass(frozen=True)
class Item:
    """A table or figure.

    :param summary: What it shows, in a line.
    :param parts: The runs that it shows.
    :param draw: Returns the figure, and Markdown to stand below it.
    :param recordings: How many runs it records step by step, besides.
    """

    summary: str
    parts: tuple[Part, ...]
    draw: Callable[[Results], tuple[Figure, str]]
    recordings: int = 0
