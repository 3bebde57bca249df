"""Batched matrix helpers."""

import pytest
import torch as th

from sb3_trl.projections.matrices import identity_like, inverse_tril, matvec, relative_size

from .cases import tril


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_inverse(batch):
    factor = tril(*batch, dim=5)
    inverse = inverse_tril(factor)
    assert th.allclose(inverse @ factor, identity_like(factor).expand_as(factor), atol=1e-12)
    assert th.equal(inverse, inverse.tril())


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize("shared", [True, False])
def test_matvec(batch, shared):
    matrix = th.randn(*(() if shared else batch), 5, 5)
    x = th.randn(*batch, 5)
    assert th.allclose(matvec(matrix, x), th.einsum("...ij,...j->...i", matrix, x), atol=1e-5)


def test_relative_size_bounds_what_rounding_changes():
    factor = tril(200, dim=6, condition=1e6)
    inverse = inverse_tril(factor)
    rounded = factor.float().double()
    change = th.linalg.matrix_norm(inverse @ (rounded - factor))
    unit = 0.5 * th.finfo(th.float32).eps
    assert (change <= unit * relative_size(factor, inverse)).all()


def test_relative_size_does_not_depend_on_units():
    """Standard deviations of very different sizes are nothing to worry about."""
    factor = th.diag(th.tensor([1e-6, 1.0, 1e6], dtype=th.float64))
    assert relative_size(factor, inverse_tril(factor)).item() == pytest.approx(3**0.5)
