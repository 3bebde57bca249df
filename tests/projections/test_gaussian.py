"""Gaussians against torch.distributions, and the distances between them against their definitions."""

import math

import pytest
import torch as th
from torch import distributions as td

from sb3_trl.projections import Gaussian
from sb3_trl.projections.gaussian import (
    frobenius,
    frobenius_covariance,
    kl,
    kl_covariance,
    mahalanobis,
    wasserstein,
    wasserstein_covariance,
)

from .cases import KINDS, gaussian, leaf, matrix_sqrt, pair

every_kind = pytest.mark.parametrize("kind", KINDS)
contextual_or_not = pytest.mark.parametrize("contextual", [True, False], ids=["contextual", "shared"])


def reference(gaussian: Gaussian) -> td.MultivariateNormal:
    return td.MultivariateNormal(gaussian.mean, scale_tril=gaussian.scale_tril)


@every_kind
@contextual_or_not
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_log_prob_entropy_and_covariance(kind, contextual, batch):
    p = gaussian(*batch, dim=4, kind=kind, contextual=contextual)
    expected = reference(p)
    x = p.mean + th.randn_like(p.mean)
    assert th.allclose(p.log_prob(x), expected.log_prob(x), rtol=1e-12)
    assert th.allclose(p.entropy(), expected.entropy(), rtol=1e-12)
    assert p.entropy().shape == batch
    assert th.allclose(p.covariance.expand(*batch, 4, 4), expected.covariance_matrix, rtol=1e-12)
    assert p.is_diagonal == (kind == "diagonal")
    assert p.is_contextual == (contextual and batch != ())
    assert p.dim == 4


@every_kind
@contextual_or_not
def test_whiten_inverts_unwhiten(kind, contextual):
    p = gaussian(2, 3, dim=4, kind=kind, contextual=contextual)
    x = th.randn_like(p.mean)
    assert th.allclose(p.whiten(p.unwhiten(x)), x, rtol=1e-12)
    expected = (p.scale_tril @ x.unsqueeze(-1)).squeeze(-1)
    assert th.allclose(p.unwhiten(x), expected, rtol=1e-12)


@every_kind
@contextual_or_not
def test_inverse_is_computed_once_and_in_float64(kind, contextual):
    p = gaussian(3, dim=4, kind=kind, contextual=contextual, dtype=th.float32)
    assert p.inverse_tril.dtype == th.float64
    assert p.inverse_tril is p.inverse_tril
    product = p.inverse_tril @ p.scale_tril.double()
    assert th.allclose(product, th.eye(4, dtype=th.float64).expand_as(product), atol=1e-10)


@every_kind
@contextual_or_not
def test_samples_have_the_moments(kind, contextual):
    one = gaussian(1, dim=2, kind=kind, contextual=contextual)
    p = one.with_scale(one.scale, one.mean.expand(200_000, 2))
    sample = p.sample()
    assert th.allclose(sample.mean(0), one.mean[0], atol=0.02)
    assert th.allclose(sample.T.cov(), one.covariance.reshape(2, 2), rtol=0.03, atol=0.03)


@every_kind
def test_samples_are_differentiable_in_mean_and_scale(kind):
    p = leaf(gaussian(3, dim=2, kind=kind))
    p.sample().sum().backward()
    assert th.equal(p.mean.grad, th.ones_like(p.mean))
    assert (p.scale.grad != 0).any()


@every_kind
def test_indexing_selects_states_and_keeps_a_shared_scale(kind):
    index = th.tensor([4, 0])
    contextual, shared = (gaussian(5, dim=2, kind=kind, contextual=c) for c in (True, False))
    assert th.equal(contextual[index].mean, contextual.mean[index])
    assert th.equal(contextual[index].scale, contextual.scale[index])
    assert shared[index].scale is shared.scale
    assert contextual[1:3].mean.shape == (2, 2)


@every_kind
def test_scaled_takes_a_scalar_or_one_factor_per_state(kind):
    p = gaussian(5, dim=2, kind=kind)
    factor = th.rand(5, dtype=th.float64)
    scaled = p.scaled(factor)
    assert th.allclose(scaled.scale[3], factor[3] * p.scale[3])
    assert th.allclose(p.scaled(th.tensor(2.0)).covariance, 4 * p.covariance)
    assert p.scaled(th.tensor(2.0, dtype=th.float32)).scale.dtype == th.float64


@every_kind
def test_detach_and_double(kind):
    p = leaf(gaussian(2, dim=2, kind=kind, dtype=th.float32))
    assert not p.detach().mean.requires_grad
    assert not p.detach().scale.requires_grad
    assert p.double().mean.dtype == p.double().scale.dtype == th.float64


def test_repr_says_kind_shapes_and_dtype():
    assert repr(Gaussian(th.zeros(3, 2), std=th.ones(2))) == "Gaussian(mean: (3, 2), std: (2,), torch.float32)"


@every_kind
@contextual_or_not
def test_kl_equals_torch(kind, contextual):
    p, q = pair(6, dim=4, kind=kind, contextual=contextual, size=0.7)
    assert th.allclose(sum(kl(p, q)), td.kl_divergence(reference(p), reference(q)), rtol=1e-10)


@every_kind
def test_covariance_distances_equal_their_definitions(kind):
    p, q = pair(6, dim=3, kind=kind, size=0.7)
    p_cov, q_cov = p.covariance, q.covariance
    precision = q_cov.inverse()
    divergence = 0.5 * ((precision @ p_cov).diagonal(dim1=-2, dim2=-1).sum(-1) - 3 - (precision @ p_cov).logdet())
    assert th.allclose(kl_covariance(p, q), divergence, rtol=1e-9)
    assert th.allclose(frobenius_covariance(p, q), (p_cov - q_cov).square().sum((-2, -1)), rtol=1e-12)
    # The Wasserstein distance in the coordinates Σ_q^(-½) x.
    inverse_root = matrix_sqrt(q_cov).inverse()
    white = inverse_root @ p_cov @ inverse_root
    squared = (white + th.eye(3) - 2 * matrix_sqrt(white)).diagonal(dim1=-2, dim2=-1).sum(-1)
    assert th.allclose(wasserstein_covariance(p, q), squared, rtol=1e-9)


@every_kind
def test_each_distance_splits_into_mean_and_covariance_part(kind):
    p, q = pair(6, dim=3, kind=kind)
    squared = mahalanobis(p, q)
    step = (p.mean - q.mean).unsqueeze(-1)
    assert th.allclose(squared, (step.mT @ q.covariance.inverse() @ step).reshape(6), rtol=1e-9)
    expected = {
        kl: (0.5 * squared, kl_covariance(p, q)),
        wasserstein: (squared, wasserstein_covariance(p, q)),
        frobenius: (squared, frobenius_covariance(p, q)),
    }
    for distance, parts in expected.items():
        assert all(th.equal(a, b) for a, b in zip(distance(p, q), parts, strict=True))


@every_kind
@pytest.mark.parametrize("distance", [kl, wasserstein, frobenius])
def test_distance_to_itself_is_zero_with_zero_gradient(kind, distance):
    q = gaussian(4, dim=5, kind=kind, condition=1e4)
    p = leaf(q)
    total = sum(distance(p, q))
    assert th.equal(total, th.zeros(4, dtype=th.float64))
    total.sum().backward()
    assert th.equal(p.mean.grad, th.zeros_like(p.mean))
    assert th.equal(p.scale.grad, th.zeros_like(p.scale))


@every_kind
@pytest.mark.parametrize("distance", [kl, wasserstein, frobenius])
def test_small_distances_keep_their_digits(kind, distance):
    """A scale 1e-6 away, at which the squared distances are of the order of 1e-12."""
    q = gaussian(1, dim=3, kind=kind)
    # One plus a power of two: p and q are exact multiples.
    step = 2.0**-20
    p = q.with_scale(q.scale * (1 + step))
    cov = distance(p, q)[1].item()
    excess = step * (2 + step)
    expected = {
        kl: 3 * 0.5 * (excess - math.log1p(excess)),
        wasserstein: 3 * step**2,
        frobenius: excess**2 * float(q.covariance.square().sum()),
    }[distance]
    assert cov == pytest.approx(expected, rel=1e-8)


@every_kind
@contextual_or_not
@pytest.mark.parametrize("distance", [kl, wasserstein, frobenius])
def test_gradient_of_distances(kind, contextual, distance):
    p, q = pair(3, dim=3, kind=kind, contextual=contextual)
    p = leaf(p)

    def parts(mean: th.Tensor, scale: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return distance(p.with_scale(scale if kind == "diagonal" else scale.tril(), mean), q)

    assert th.autograd.gradcheck(parts, (p.mean, p.scale), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("distance", [kl, wasserstein, frobenius])
def test_shapes_of_shared_and_contextual_scales(distance):
    shared, contextual = (gaussian(5, dim=2, kind="diagonal", contextual=c) for c in (False, True))
    assert [x.shape for x in distance(shared, shared)] == [(5,), ()]
    assert [x.shape for x in distance(shared, contextual)] == [(5,), (5,)]


@pytest.mark.parametrize("distance", [kl, wasserstein, frobenius])
def test_distance_of_mixed_kinds_is_an_error(distance):
    with pytest.raises(ValueError, match="One Gaussian is diagonal and the other full: build both"):
        distance(gaussian(2, dim=2, kind="diagonal"), gaussian(2, dim=2, kind="full"))


def test_distance_of_a_broken_covariance_is_not_a_number():
    """And not an exception of the eigensolver."""
    q = gaussian(2, dim=2, kind="full")
    scale = q.scale.clone()
    scale[0, 1, 0] = math.nan
    cov = wasserstein_covariance(q.with_scale(scale), q)
    assert cov.isnan().tolist() == [True, False]


@pytest.mark.parametrize("scales", [{}, {"std": th.ones(2), "scale_tril": th.eye(2)}])
def test_exactly_one_scale(scales):
    with pytest.raises(ValueError, match=r"exactly one of std= .* and scale_tril="):
        Gaussian(th.zeros(3, 2), **scales)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({"std": th.ones(3)}, r"std has shape \(3,\) and the mean \(5, 2\): std must end in \(2,\)"),
        ({"std": th.tensor(1.0)}, r"std has shape \(\) and the mean \(5, 2\): std must end in \(2,\)"),
        ({"scale_tril": th.ones(2)}, r"scale_tril has shape \(2,\) .* must end in \(2, 2\)"),
        ({"scale_tril": th.ones(5, 2, 3)}, r"scale_tril has shape \(5, 2, 3\) .* must end in \(2, 2\)"),
        ({"std": th.ones(4, 2)}, r"std has shape \(4, 2\) .* give one scale per mean, or a single one"),
        ({"scale_tril": th.ones(4, 2, 2)}, r"a single one of shape \(2, 2\)"),
    ],
)
def test_shapes_must_fit(scale, message):
    with pytest.raises(ValueError, match=message):
        Gaussian(th.zeros(5, 2), **scale)
