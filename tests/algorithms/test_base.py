"""What the algorithms share: when an update is compiled."""

import pytest
from support import make_model


def test_auto_compiles_where_enough_steps_are_ahead():
    model = make_model(n_epochs=10)
    model._num_timesteps_at_start = 0
    for total, expected in ((10_000, False), (1_000_000, True)):
        model._total_timesteps = total
        assert model._pays_to_compile() is expected
    model.compile = False
    assert not model._pays_to_compile()
    full = make_model(compile=True, policy_kwargs={"covariance": "full"})
    assert not full._pays_to_compile(), "what cannot be compiled trains without"


def test_unknown_compile_setting():
    with pytest.raises(ValueError, match="compile='yes' is unknown"):
        make_model(compile="yes")
