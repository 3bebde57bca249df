"""Losses that several algorithms share, against numbers by hand."""

import numpy as np
import pytest
import torch as th

from sb3_trl.algorithms.losses import clipped_surrogate_loss


def test_the_surrogate_is_clipped():
    old, advantages = th.zeros(4), th.tensor([1.0, -1.0, 1.0, -1.0])
    log_prob = th.tensor([0.5, 0.5, -0.5, -0.5], requires_grad=True)
    loss, clip_fraction = clipped_surrogate_loss(log_prob, old, advantages, th.full((4,), 0.2))
    assert clip_fraction == 1
    assert loss.item() == pytest.approx(-np.mean([1.2, -np.exp(0.5), np.exp(-0.5), -0.8]))
    (gradient,) = th.autograd.grad(loss, log_prob)
    assert ((gradient != 0) == th.tensor([False, True, True, False])).all()
