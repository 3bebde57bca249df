"""Returns of random play."""

import numpy as np
import pytest

from sb3_trl.report.random_policy import random_returns, shipped_returns


def test_random_returns_are_those_of_the_table():
    """Reacher is quick, and its returns vary little: the table's 100 episodes begin with these."""
    returns = random_returns("Reacher-v5", 20)
    assert np.array_equal(returns, random_returns("Reacher-v5", 20))
    assert returns.mean() == pytest.approx(shipped_returns()["Reacher-v5"], abs=4)
