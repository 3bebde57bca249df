"""Figures show the table that they are given."""

import numpy as np
import pandas as pd
import pytest

from sb3_trl.report.figures import draw_curves, limits


def test_limits_hold_the_values():
    low, high = limits([1.0, float("nan"), 3.0])
    assert low < 1 < 3 < high
    low, high = limits([2.0])
    assert low < 2 < high
    assert limits([float("nan")]) == (-1, 1)


@pytest.mark.parametrize("seeds", [2, 4])
def test_curves(seeds):
    """A panel for each task, a line for the mean, and a band from three seeds on."""
    table = pd.DataFrame(
        [
            {"variant": variant, "task": task, "seed": seed, "step": step, "eval_return": seed + step}
            for variant in ("A", "B")
            for task in ("S", "T")
            for seed in range(seeds)
            for step in (10, 20, 30)
        ]
    )
    figure = draw_curves(table, "eval_return", "return", {"A": {"label": "first"}, "B": {}}, lines={"bound": 100})
    assert [axis.get_title() for axis in figure.axes] == ["S", "T"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["first", "B", "bound"]
    for axis in figure.axes:
        mean = axis.get_lines()[0]
        assert np.allclose(mean.get_ydata(), np.array([10, 20, 30]) + (seeds - 1) / 2)
        assert len(axis.collections) == (2 if seeds > 2 else 0)
        assert axis.get_ylim()[1] > 100
