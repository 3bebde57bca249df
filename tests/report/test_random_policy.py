"""Returns of random play."""

import numpy as np
import pytest

from sb3_trl.report.random_policy import random_returns, shipped_returns


def test_random_returns_are_those_of_the_table():
    """Reacher is quick, and its returns vary little: the table's 100 episodes begin with these."""
    returns = random_returns("Reacher-v5", 20)
    assert np.array_equal(returns, random_returns("Reacher-v5", 20))
    assert returns.mean() == pytest.approx(shipped_returns()["Reacher-v5"], abs=4)


def test_many_tasks_are_played_in_turn():
    """The first is reach, which brings something in every step; the second is push, where hardly anything happens."""
    pytest.importorskip("metaworld", reason='pip install "sb3-trl[metaworld]"')
    first, second = random_returns("sb3_trl/MetaWorldMT10-v0", 2)
    assert first == random_returns("sb3_trl/MetaWorldReach-v0", 1)[0]
    assert second < 100 < first
    assert {"sb3_trl/MetaWorldReach-v0", "sb3_trl/MetaWorldMT10-v0"} <= shipped_returns().keys()
