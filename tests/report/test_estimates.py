"""Estimates over tasks."""

from functools import partial

import pandas as pd
import pytest

pytest.importorskip("rliable")

from sb3_trl.report.estimates import aggregate
from sb3_trl.report.statistics import interquartile_mean


def test_aggregate_leaves_out_what_cannot_be_compared(monkeypatch):
    """B lacks a run on T; on S nobody is better than random play."""
    monkeypatch.setattr("sb3_trl.report.estimates.interquartile_mean", partial(interquartile_mean, repetitions=100))
    rows = [("A", "R", 4.0), ("A", "S", 1.0), ("A", "T", 2.0), ("B", "R", 6.0), ("B", "S", 1.0), ("B", "T", 3.0)]
    final = pd.DataFrame(
        [(*row, seed) for row in rows for seed in (0, 1)], columns=["variant", "task", "value", "seed"]
    )
    random = {"R": 2.0, "S": 1.0, "T": 1.0}
    estimates, text = aggregate(final, "A", random)
    assert {name: estimate.value for name, estimate in estimates.items()} == {"A": 1.0, "B": 2.0}
    assert "on S: left out" in text
    estimates, text = aggregate(final.drop(index=11), "A", random)
    assert list(estimates) == ["A"]
    assert "| B |" not in text
    assert aggregate(final[final.variant == "B"], "A", random)[0] == {}
