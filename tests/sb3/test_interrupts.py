"""Ctrl-C while a model trains: what torch keeps for everybody is as it was."""

import pytest
import torch as th
from changes import Calls, make
from support import ALGORITHMS

from sb3_trl import LeanTRPO


@pytest.mark.parametrize("cls", [*ALGORITHMS, LeanTRPO])
def test_an_interrupt_leaves_gradients_on(cls, request):
    """Ctrl-C where a block without gradients has begun, and its end is not reached."""
    request.addfinalizer(lambda: th.set_grad_enabled(True))

    def interrupted(model, n: int) -> None:
        th.set_grad_enabled(False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(cls).learn(64, Calls(interrupted, "step"))
    assert th.is_grad_enabled()
