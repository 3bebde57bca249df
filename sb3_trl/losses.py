"""The losses, as pure functions of tensors. ``batch`` is the number of samples in a minibatch.

All return a scalar to minimise, and the statistics to log as a dict of detached scalars.
"""

from __future__ import annotations

import torch as th
from torch import Tensor

from sb3_trl.projections import Gaussian
from sb3_trl.projections.projection import Projection

__all__ = ["normalize", "surrogate_loss", "trust_region_loss", "value_loss"]


def normalize(advantages: Tensor) -> Tensor:
    """Return advantages with mean 0 and standard deviation 1; a single one comes back as it is."""
    if len(advantages) < 2:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def surrogate_loss(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor) -> Tensor:
    """−E[π(a|s)/π_old(a|s)·Â], the unclipped importance-sampled objective (eq. 1 of Otto et al., 2021)."""
    return -(th.exp(log_prob - old_log_prob) * advantages).mean()


def trust_region_loss(new: Gaussian, projected: Gaussian, projection: Projection | None) -> Tensor:
    """E[d(π_θ, stop-gradient(π̃))], the regression term of eq. 12; 0 without a projection."""
    if projection is None:
        return new.mean.new_zeros(())
    return projection.penalty(new, projected).mean()


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """E[(V(s) − R)²]."""
    return (values - returns).square().mean()
