import pytest
import torch as th

th.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    """Every test draws the same random numbers, whichever ran before it."""
    th.manual_seed(0)
