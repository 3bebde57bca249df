"""Which optimisers are the Adam that is compiled."""

import torch as th

from sb3_trl.steps.flat_adam import is_plain_adam


def test_only_plain_adam_is_compiled():
    parameters = [th.nn.Parameter(th.zeros(2))]
    assert is_plain_adam(th.optim.Adam(parameters))
    assert not is_plain_adam(th.optim.Adam(parameters, amsgrad=True))
    assert not is_plain_adam(th.optim.Adam(parameters, weight_decay=0.1))
    assert not is_plain_adam(th.optim.AdamW(parameters))
    assert not is_plain_adam(th.optim.SGD(parameters, lr=1.0))
    two_groups = [{"params": parameters}, {"params": [th.nn.Parameter(th.zeros(1))]}]
    assert not is_plain_adam(th.optim.Adam(two_groups))
