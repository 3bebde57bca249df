"""The projection onto a ball."""

import pytest
import torch as th

from sb3_trl.projections.radial import column, radial_projection, radial_weight


def test_weight_is_the_share_of_the_step_that_the_bound_allows():
    distance = th.tensor([0.0, 0.5, 2.0, 8.0], dtype=th.float64)
    t, inside = radial_weight(distance, 1.0)
    assert th.allclose(t, th.tensor([1.0, 1.0, 0.5, 0.125], dtype=th.float64), rtol=1e-14)
    assert inside.tolist() == [True, True, False, False]
    assert (t * distance <= 1).all()


def test_weight_leaves_room_for_rounding():
    t, _ = radial_weight(th.tensor([2.0], dtype=th.float64), 1.0, rounding=0.1)
    assert t.item() == pytest.approx(0.45)
    t, _ = radial_weight(th.tensor([2.0], dtype=th.float64), 1.0, rounding=5.0)
    assert 0 <= t.item() < 1e-300


def test_gradient_of_the_weight():
    distance = th.tensor([0.0, 0.5, 2.0], dtype=th.float64, requires_grad=True)
    radial_weight(distance, 1.0)[0].sum().backward()
    assert th.allclose(distance.grad, th.tensor([0.0, 0.0, -0.25], dtype=th.float64), rtol=1e-14)


@pytest.mark.parametrize("bound", [0.01, th.tensor(0.01), 0.01 * th.ones(7)])
def test_projection_is_the_nearest_point_of_the_ball(bound):
    old, new, unit = th.randn(3, 7, 4, dtype=th.float64)
    unit = unit.abs() + 0.1
    projected = radial_projection(new, old, unit, bound, 0.0)
    assert projected.dtype == th.float64
    step = (projected - old) / unit
    assert th.allclose(step.square().sum(-1), th.full((7,), 0.01, dtype=th.float64))
    # The step points at the prediction.
    assert th.allclose(th.nn.functional.cosine_similarity(step, (new - old) / unit), th.ones(7, dtype=th.float64))


def test_zero_step_has_the_identity_as_its_gradient():
    old = th.randn(3, 4, dtype=th.float64)
    new = old.clone().requires_grad_()
    projected = radial_projection(new, old, th.ones(4), 0.01, 0.0)
    assert th.equal(projected, old)
    projected.sum().backward()
    assert th.equal(new.grad, th.ones_like(new))


def test_a_bound_of_zero_keeps_the_old_point():
    """A schedule may end there."""
    old, new = th.randn(2, 5, 3)
    new[0] = old[0]
    new.requires_grad_()
    projected = radial_projection(new, old, th.ones(3), 0.0, 0.0)
    assert th.equal(projected, old)
    projected.sum().backward()
    assert new.grad.isfinite().all()


def test_column():
    assert column(0.5) == 0.5
    assert column(th.tensor(0.5)).shape == ()
    assert column(th.ones(3)).shape == (3, 1)
