"""Bounds may be on another device than the Gaussians: results are where the Gaussians are.

Torch's device ``meta`` has shapes and no numbers, and refuses as a GPU does what is spread over two devices.
"""

import pytest
import torch as th

from sb3_trl.projections import JointKLProjection, WassersteinProjection, control_entropy

from .cases import ALL, KINDS, gaussian

PROJECTIONS = {**ALL, "w2 commuting": lambda *bounds: WassersteinProjection(*bounds, commuting=True)}
BOUNDS = [th.tensor(0.1), th.full((4,), 0.1, dtype=th.float64)]


def pair(kind: str):
    """Two Gaussians of four states."""
    return [g.with_scale(g.scale.to("meta"), g.mean.to("meta")) for g in (gaussian(4, dim=3, kind=kind),) * 2]


@pytest.mark.parametrize("bound", BOUNDS, ids=["one", "per state"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROJECTIONS)
def test_bounds_go_where_the_gaussians_are(name, kind, bound):
    (new, old), own, default = pair(kind), PROJECTIONS[name](bound, bound), PROJECTIONS[name]()
    for result in (own(new, old), default(new, old, bound, bound), default(new, old, cov_bound=bound)):
        assert result.mean.device == result.scale.device == new.mean.device
        assert result.mean.shape == new.mean.shape
    for inside in (own.is_inside(new, old), default.is_inside(new, old, bound, bound)):
        assert inside.device == new.mean.device
        assert inside.shape == (4,)


@pytest.mark.parametrize("bound", BOUNDS, ids=["one", "per state"])
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_of_the_entropy_do_too(kind, bound):
    new, old = pair(kind)
    for result in (control_entropy(new, bound), JointKLProjection()(new, old, entropy_bound=bound)):
        assert result.scale.device == new.scale.device
    assert JointKLProjection().is_infeasible(old, bound, mean_bound=bound).device == old.mean.device
