"""Markdown tables of estimates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from sb3_trl.report.statistics import Estimate

__all__ = ["estimate_text", "interval_text", "markdown_table", "number_text"]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; all columns but the first are aligned to the right.

    :param header: The columns' names.
    :param rows: One text for each column.
    """
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def estimate_text(estimate: Estimate, digits: int = 3, bold: bool = False) -> str:
    """Return ``mean ± half the interval``, the mean with so many digits that count; bold if asked for.

    Without an interval (one seed) there is the mean alone, without a mean (no runs) –.
    """
    if np.isnan(estimate.value):
        return "–"
    decimals = _decimals(estimate.value, digits)
    text = f"{estimate.value:.{decimals}f}"
    text = f"**{text}**" if bold else text
    return text if np.isnan(estimate.half_width) else f"{text} ± {estimate.half_width:.{decimals}f}"


def interval_text(estimate: Estimate, digits: int = 3) -> str:
    """Return ``mean (low to high)``, for intervals that are not symmetric; without an interval the mean alone."""
    decimals = _decimals(estimate.value, digits)
    text = number_text(estimate.value, digits)
    return text if np.isnan(estimate.low) else f"{text} ({estimate.low:.{decimals}f} to {estimate.high:.{decimals}f})"


def number_text(value: float, digits: int = 3) -> str:
    """Return a number with so many digits that count, – for a missing one."""
    return "–" if np.isnan(value) else f"{value:.{_decimals(value, digits)}f}"


def _decimals(value: float, digits: int) -> int:
    """Return the decimal places that show ``digits`` digits of a number."""
    if value == 0 or not np.isfinite(value):
        return 0
    return max(digits - 1 - int(np.floor(np.log10(abs(value)))), 0)
