"""Matrix square roots and their gradients."""

import pytest
import torch as th

from sb3_trl.projections.spectral import spd_sqrt, sqrt_difference

from .cases import tril


def covariance(*batch: int, dim: int = 4, condition: float = 30.0) -> th.Tensor:
    factor = tril(*batch, dim=dim, condition=condition)
    return factor @ factor.mT


@pytest.mark.parametrize("dim", [1, 2, 17])
def test_square_of_the_root(dim):
    matrix = covariance(5, dim=dim)
    root = spd_sqrt(matrix)
    assert th.allclose(root @ root, matrix, rtol=1e-12, atol=1e-13)
    assert th.allclose(root, root.mT, rtol=0, atol=1e-14)
    assert (th.linalg.eigvalsh(root) > 0).all()


def test_difference_is_the_root_minus_the_identity():
    matrix = covariance(5)
    eye = th.eye(4, dtype=th.float64)
    assert th.allclose(sqrt_difference(matrix - eye), spd_sqrt(matrix) - eye, atol=1e-13)


def test_difference_keeps_the_digits_of_small_matrices():
    matrix = covariance(5)
    for size in (1e-4, 1e-10, 1e-16):
        # (I + H)^½ − I = H/2 − H²/8 + …
        expected = size * matrix / 2 - size**2 * matrix @ matrix / 8
        assert th.allclose(sqrt_difference(size * matrix) / size, expected / size, rtol=100 * size**2 + 1e-12)
    assert th.equal(sqrt_difference(0 * matrix), 0 * matrix)


def symmetric(x: th.Tensor) -> th.Tensor:
    return 0.5 * (x + x.mT)


@pytest.mark.parametrize("function", [spd_sqrt, sqrt_difference])
@pytest.mark.parametrize("spectrum", ["generic", "equal", "nearly equal", "two equal"])
def test_gradient(function, spectrum):
    eye = th.eye(3, dtype=th.float64)
    matrix = {
        "generic": covariance(dim=3),
        "equal": 2 * eye,
        "nearly equal": 2 * eye + 1e-9 * symmetric(th.randn(3, 3, dtype=th.float64)),
        "two equal": th.diag(th.tensor([1.0, 1.0, 3.0], dtype=th.float64)),
    }[spectrum]
    matrix.requires_grad_()
    assert th.autograd.gradcheck(lambda x: function(symmetric(x)), matrix, atol=1e-6)


def test_singular_matrices_have_finite_roots_and_gradients():
    """Eigenvalues that rounding has lost, or turned negative."""
    vectors = th.linalg.qr(th.randn(3, 3, dtype=th.float64))[0]
    for smallest in (0.0, -1e-17, 1e-30):
        values = th.tensor([1.0, 0.5, smallest], dtype=th.float64)
        matrix = ((vectors * values) @ vectors.T).requires_grad_()
        root = spd_sqrt(matrix)
        assert th.allclose(root @ root, matrix, atol=1e-15)
        root.sum().backward()
        assert matrix.grad.isfinite().all()
    zero = th.zeros(2, 2, dtype=th.float64, requires_grad=True)
    spd_sqrt(zero).sum().backward()
    assert th.equal(spd_sqrt(zero), zero)


@pytest.mark.parametrize("function", [spd_sqrt, sqrt_difference])
def test_matrices_that_are_not_finite_do_not_disturb_the_others(function):
    matrix = covariance(3)
    expected = function(matrix)
    matrix[1, 0, 0] = th.nan
    result = function(matrix)
    assert result[1].isnan().any()
    assert th.equal(result[[0, 2]], expected[[0, 2]])


def test_float32():
    matrix = covariance(5)
    assert th.allclose(spd_sqrt(matrix.float()).double(), spd_sqrt(matrix), atol=1e-5)
