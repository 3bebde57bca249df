"""What every projection promises: bound, identity inside, idempotence, gradients, precision, broken predictions."""

import math

import pytest
import torch as th

from sb3_trl.projections import (
    Distribution,
    FrobeniusProjection,
    Gaussian,
    KLProjection,
    Projection,
    WassersteinProjection,
)
from sb3_trl.projections.projection import invalid_scale

from .cases import (
    ALL,
    CASES,
    KINDS,
    SEPARATE,
    backward,
    close,
    distances,
    equal,
    gaussian,
    gradients,
    leaf,
    moved,
    pair,
    tensors,
    tril,
)

MEAN_BOUND, COV_BOUND = 0.03, 1e-2


def make(name: str) -> Projection:
    if name == "commuting":
        return WassersteinProjection(MEAN_BOUND, COV_BOUND, commuting=True)
    return ALL[name](MEAN_BOUND, COV_BOUND)


def excess(projection: Projection, projected: Distribution, old: Distribution) -> float:
    """How far outside the trust region, relative to the bounds, measured in float64."""
    if not isinstance(projected, Gaussian):
        return float((distances(projection, projected, old)[0] / projection.kl_bound).max()) - 1
    mean, cov = distances(projection, projected, old)
    if projection.constrains_entropy:
        return float(((mean + cov) / (MEAN_BOUND + COV_BOUND)).max()) - 1
    return max(float((mean / MEAN_BOUND).max()), float((cov / COV_BOUND).max())) - 1


def outside(projection: Projection, new: Distribution, old: Distribution) -> th.Tensor:
    return ~projection.is_inside(new, old)


every_case = pytest.mark.parametrize(
    ("name", "kind"), [*CASES, *(("commuting", kind) for kind in KINDS)], ids=lambda name: name
)
every_projection = pytest.mark.parametrize("name", [*ALL, "commuting"])
every_kind = pytest.mark.parametrize("kind", KINDS)
contextual_or_not = pytest.mark.parametrize("contextual", [True, False], ids=["contextual", "shared"])


@every_projection
@every_kind
@contextual_or_not
@pytest.mark.parametrize(("batch", "dim"), [(1, 1), (1, 6), (7, 2), (33, 1), (5, 6), (3, 17), (2, 64)])
def test_bound_and_idempotence(name, kind, contextual, batch, dim):
    projection = make(name)
    new, old = pair(batch, dim=dim, kind=kind, contextual=contextual)
    assert outside(projection, new, old).any()
    projected = projection(new, old)
    assert projected.mean.shape == (batch, dim)
    assert excess(projection, projected, old) <= 1e-10
    assert projection.is_inside(projected, old).all()
    again = projection(projected, old)
    assert th.equal(again.mean, projected.mean)
    assert th.equal(again.scale, projected.scale)


@every_case
def test_inside_comes_back_bit_for_bit(name, kind):
    projection = make(name)
    new, old = pair(64, dim=6, kind=kind, size=1e-3)
    assert equal(projection(new, old), new)
    assert equal(projection(old, old), old)


@every_case
def test_mixed_batch_keeps_the_states_that_are_inside(name, kind):
    projection = make(name)
    size = th.tensor([0.0, 1e-4, 1e-3, 0.5, 2.0], dtype=th.float64).repeat(5)
    new, old = pair(25, dim=6, kind=kind, size=size)
    is_outside = outside(projection, new, old)
    assert is_outside.any()
    assert not is_outside.all()
    projected = projection(new, old)
    assert excess(projection, projected, old) <= 1e-10
    assert equal(projected[~is_outside], new[~is_outside])


@every_projection
@every_kind
@pytest.mark.parametrize("condition", [1e4, 1e8])
@pytest.mark.parametrize("aligned", [True, False], ids=["near", "unrelated"])
def test_ill_conditioned_covariances(name, kind, condition, aligned):
    """The new covariance is near the old one, or ill-conditioned in other directions."""
    projection = make(name)
    new, old = pair(16, dim=6, kind=kind, condition=condition)
    if not aligned:
        new = new.with_scale(gaussian(16, dim=6, kind=kind, condition=condition).scale)
    new = leaf(new)
    projected = projection(new, old)
    # The commuting form squares the condition number.
    tolerance = 1e-6 if (name, kind, condition) == ("commuting", "full", 1e8) else 1e-10
    assert excess(projection, projected, old) <= tolerance
    backward(projected)
    assert new.mean.grad.isfinite().all()
    assert new.scale.grad.isfinite().all()


@every_projection
@every_kind
@pytest.mark.parametrize("per_state", [True, False])
def test_bounds_per_state_and_per_call(name, kind, per_state):
    projection = ALL[name](1.0, 1.0) if name in ALL else WassersteinProjection(1.0, 1.0, commuting=True)
    new, old = pair(12, dim=3, kind=kind, contextual=False, size=1.0)
    n = 12 if per_state else 1
    mean_bound = 10 ** -(3 * th.rand(n)).squeeze()
    cov_bound = 10 ** -(3 * th.rand(n)).squeeze()
    projected = projection(new, old, mean_bound, cov_bound)
    mean, cov = distances(projection, projected, old)
    if projection.constrains_entropy:
        assert (mean + cov <= (mean_bound + cov_bound) * (1 + 1e-10)).all()
    else:
        assert (mean <= mean_bound * (1 + 1e-10)).all()
        assert (cov <= cov_bound * (1 + 1e-10)).all()
        assert projected.is_contextual == per_state
    assert projection.is_inside(projected, old, mean_bound, cov_bound).all()
    assert projected.mean.dtype == projected.scale.dtype == th.float64


@every_projection
@every_kind
@pytest.mark.parametrize("shared", ["new", "old"])
def test_one_scale_shared_and_the_other_not(name, kind, shared):
    projection = make(name)
    new, old = pair(5, dim=3, kind=kind, size=0.5)
    if shared == "new":
        new = new.with_scale(new.scale[0])
    else:
        old = old.with_scale(old.scale[0])
    projected = projection(new, old)
    assert projected.is_contextual
    assert excess(projection, projected, old) <= 1e-10
    expanded = projection(new.with_scale(new.scale.expand(projected.scale.shape)), old)
    assert th.equal(projected.scale, expanded.scale)


@every_case
@pytest.mark.parametrize("bound_dtype", [th.float32, th.float64])
def test_result_has_the_dtype_of_the_prediction(name, kind, bound_dtype):
    new, old = pair(4, dim=3, kind=kind, size=1.0, dtype=th.float32)
    for bound in (th.tensor(0.01, dtype=bound_dtype), th.full((4,), 0.01, dtype=bound_dtype)):
        projected = make(name)(new, old, **dict.fromkeys(new.bound_names, bound))
        assert all(x.dtype == th.float32 for x in tensors(projected))


@every_case
@contextual_or_not
def test_batch_equals_loop(name, kind, contextual):
    projection = make(name)
    new, old = pair(9, dim=4, kind=kind, contextual=contextual)
    projected = projection(new, old)
    for i in range(9):
        assert close(projection(new[i : i + 1], old[i : i + 1]), projected[i : i + 1])


@every_case
def test_more_batch_dimensions(name, kind):
    projection = make(name)
    new, old = pair(2, 3, dim=4, kind=kind)
    projected = projection(new, old)
    assert projected.batch_shape == (2, 3)
    for i in range(2):
        assert close(projected[i], projection(new[i], old[i]))


@every_projection
@every_kind
def test_float32_agrees_with_float64(name, kind):
    projection = make(name)
    new, old = pair(50, dim=6, kind=kind, dtype=th.float32, size=0.5)
    projected = projection(new, old)
    wide = projection(new.double(), old.double())
    assert projected.mean.dtype == projected.scale.dtype == th.float32
    assert excess(projection, projected, old) <= 1e-6
    assert th.allclose(projected.mean.double(), wide.mean, rtol=1e-4, atol=1e-5)
    assert th.allclose(projected.scale.double(), wide.scale, rtol=1e-4, atol=1e-5)
    again = projection(projected, old)
    assert th.equal(again.mean, projected.mean)
    assert th.equal(again.scale, projected.scale)


@every_projection
def test_diagonal_and_full_agree_on_diagonal_covariances(name):
    """Values and gradients."""
    projection = make(name)
    new, old = pair(20, dim=5, kind="diagonal", size=th.linspace(0, 0.6, 20, dtype=th.float64))
    diagonal = leaf(new)
    full = leaf(Gaussian(new.mean, scale_tril=new.scale_tril))
    projected = projection(diagonal, old)
    projected_full = projection(full, Gaussian(old.mean, scale_tril=old.scale_tril))
    assert th.allclose(projected.mean, projected_full.mean, rtol=1e-9, atol=1e-11)
    assert th.allclose(projected.scale_tril, projected_full.scale, rtol=1e-9, atol=1e-11)
    cotangent = Gaussian(th.randn(20, 5).sign().double(), std=th.randn(20, 5).sign().double())
    backward(projected, cotangent)
    backward(projected_full, Gaussian(cotangent.mean, scale_tril=cotangent.scale_tril))
    assert th.allclose(diagonal.mean.grad, full.mean.grad, rtol=1e-7, atol=1e-9)
    gradient = full.scale.grad.diagonal(dim1=-2, dim2=-1)
    assert th.allclose(diagonal.scale.grad, gradient, rtol=1e-7, atol=1e-9)


@every_projection
@every_kind
@contextual_or_not
@pytest.mark.parametrize("spectrum", ["generic", "equal", "nearly equal"])
def test_gradient_equals_finite_differences(name, kind, contextual, spectrum):
    """In a batch of projected and unprojected states, from mean and scale to mean and scale."""
    projection = make(name)
    size = th.tensor([0.01, 0.4, 0.8], dtype=th.float64)
    new, old = pair(3, dim=3, kind=kind, contextual=contextual, size=size)
    if spectrum != "generic":
        scale = 1.3 * old.scale
        if spectrum == "nearly equal":
            scale = scale + 1e-7 * old.scale * th.rand_like(old.scale)
        new = new.with_scale(scale)
    new = leaf(new)

    def project(mean: th.Tensor, scale: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        projected = projection(new.with_scale(scale if kind == "diagonal" else scale.tril(), mean), old)
        return projected.mean, projected.scale

    assert th.autograd.gradcheck(project, (new.mean, new.scale), eps=1e-6, atol=1e-6, rtol=1e-5)


@every_projection
@every_kind
def test_directional_derivative_with_random_signs(name, kind):
    """17 dimensions, every state projected, cotangents of random sign."""
    projection = make(name)
    new, old = pair(4, dim=17, kind=kind, size=1.0)
    assert outside(projection, new, old).all()
    cotangent = Gaussian(th.randn_like(new.mean).sign(), std=th.ones_like(new.mean))
    weight = th.randn_like(new.scale).sign()

    def value(gaussian: Gaussian) -> th.Tensor:
        projected = projection(gaussian, old)
        return (projected.mean * cotangent.mean).sum() + (projected.scale * weight).sum()

    new = leaf(new)
    value(new).backward()
    mean_step, scale_step = th.randn_like(new.mean).sign(), old.scale * th.randn_like(new.scale).sign()
    slope = (new.mean.grad * mean_step).sum() + (new.scale.grad * scale_step).sum()
    with th.no_grad():
        h = 1e-6
        ahead = value(new.with_scale(new.scale + h * scale_step, new.mean + h * mean_step))
        behind = value(new.with_scale(new.scale - h * scale_step, new.mean - h * mean_step))
    assert th.allclose(slope, (ahead - behind) / (2 * h), rtol=1e-5)


@every_case
def test_two_forward_passes_before_two_backward_passes(name, kind):
    projection = make(name)
    (first, old), (second, _) = (pair(6, dim=4, kind=kind, size=0.5) for _ in range(2))
    collected = []
    for order in ("apart", "interleaved"):
        leaves = [leaf(first), leaf(second)]
        th.manual_seed(1)
        if order == "apart":
            for new in leaves:
                backward(projection(new, old))
        else:
            for projected in [projection(new, old) for new in leaves]:
                backward(projected)
        collected.append([gradient for new in leaves for gradient in gradients(new)])
    for apart, interleaved in zip(*collected, strict=True):
        assert th.equal(apart, interleaved)


@every_case
def test_old_policy_gets_no_gradient(name, kind):
    new, old = (leaf(policy) for policy in pair(4, dim=3, kind=kind, size=1.0))
    backward(make(name)(new, old))
    assert all(gradient is None for gradient in gradients(old))
    assert gradients(new)[0].abs().max() > 0


@every_projection
@every_kind
def test_gradients_are_finite_for_identical_and_far_predictions(name, kind):
    projection = make(name)
    size = th.tensor([0.0, 1e-12, 1e-6, 1e-2, 3.0, 10.0], dtype=th.float64)
    new, old = pair(6, dim=4, kind=kind, size=size, offset=1e3)
    new = leaf(new)
    projected = projection(new, old)
    assert excess(projection, projected, old) <= 1e-9
    backward(projected)
    assert new.mean.grad.isfinite().all()
    assert new.scale.grad.isfinite().all()


@every_projection
def test_broken_predictions_fall_back_to_the_old_scale(name):
    projection = make(name)
    new, old = pair(6, dim=3, kind="full", size=0.5)
    scale = new.scale.clone()
    scale[1, 2, 0] = math.nan
    scale[2, 1, 1] = -0.1
    scale[3, 0, 0] = math.inf
    scale[4, 2, 2] = 0.0
    broken = leaf(new.with_scale(scale))
    assert invalid_scale(broken).tolist() == [False, True, True, True, True, False]
    projected = projection(broken, old)
    assert projected.scale.isfinite().all()
    assert excess(projection, projected, old) <= 1e-10
    if not projection.constrains_entropy:
        assert th.equal(projected.scale[1:5], old.scale[1:5])
    valid = leaf(new[th.tensor([0, 5])])
    expected = projection(valid, old[th.tensor([0, 5])])
    assert th.allclose(projected.scale[[0, 5]], expected.scale, rtol=1e-12, atol=1e-14)
    (projection.penalty(broken, projected).sum() + projected.scale.sum() + projected.mean.sum()).backward()
    (projection.penalty(valid, expected).sum() + expected.scale.sum() + expected.mean.sum()).backward()
    assert broken.scale.grad.isfinite().all()
    assert broken.mean.grad.isfinite().all()
    assert th.allclose(broken.scale.grad[[0, 5]], valid.scale.grad, rtol=1e-9, atol=1e-12)


@every_projection
def test_all_predictions_broken(name):
    old = gaussian(4, dim=3, kind="full")
    broken = leaf(old.with_scale(th.full_like(old.scale, math.nan)))
    projected = make(name)(broken, old)
    assert th.equal(projected.scale, old.scale)
    projected.mean.sum().backward()
    assert broken.mean.grad.isfinite().all()


def test_invalid_scale_of_standard_deviations():
    std = th.tensor([[1.0, 2.0], [0.0, 1.0], [math.nan, 1.0], [-1.0, 1.0], [math.inf, 1.0]])
    assert invalid_scale(Gaussian(th.zeros(5, 2), std=std)).tolist() == [False, True, True, True, True]


@every_kind
@pytest.mark.parametrize("name", SEPARATE)
def test_theorem_1(name, kind):
    """Entropy after the projection: never below both for Frobenius and W2, never above both for KL."""
    projection = SEPARATE[name](0.03, 0.05)
    old = gaussian(400, dim=4, kind=kind)
    new = moved(old, 10 ** (2 * th.rand(400, dtype=th.float64) - 2))
    projected = projection(new, old).entropy()
    entropies = th.stack([new.entropy(), old.entropy()])
    if name == "kl":
        assert (projected <= entropies.amax(0) + 1e-12).all()
    else:
        assert (projected >= entropies.amin(0) - 1e-12).all()


@every_case
def test_penalty_is_zero_with_zero_gradient_where_nothing_was_projected(name, kind):
    projection = make(name)
    size = th.tensor([0.0, 1e-4, 1.0], dtype=th.float64)
    new, old = pair(3, dim=4, kind=kind, size=size)
    new = leaf(new)
    penalty = projection.penalty(new, projection(new, old))
    assert penalty.shape == (3,)
    assert (penalty[:2] == 0).all()
    assert penalty[2] > 0
    penalty.sum().backward()
    for gradient in gradients(new):
        assert (gradient[:2] == 0).all()
        assert (gradient[2] != 0).any()


@every_projection
@every_kind
def test_penalty_of_a_shared_scale_is_the_mean_part(name, kind):
    projection = make(name)
    new, old = pair(5, dim=3, kind=kind, contextual=False, size=1.0)
    new = leaf(new)
    projected = projection(new, old)
    penalty = projection.penalty(new, projected)
    assert th.allclose(penalty, projection.distance(new, projected)[0])
    penalty.sum().backward()
    assert new.scale.grad is None


@every_case
def test_no_gradient_flows_through_the_target_of_the_penalty(name, kind):
    projection = make(name)
    new, old = pair(5, dim=3, kind=kind, size=1.0)
    attached, detached = leaf(new), leaf(new)
    projection.penalty(attached, projection(attached, old)).sum().backward()
    projection.penalty(detached, projection(new, old)).sum().backward()
    for got, expected in zip(gradients(attached), gradients(detached), strict=True):
        assert th.equal(got, expected)


@every_case
def test_distance_equals_its_definition(name, kind):
    projection = make(name)
    p, q = pair(20, dim=4, kind=kind, size=0.5)
    assert len(projection.distance(p, q)) == len(p.bound_names)
    for got, expected in zip(projection.distance(p, q), distances(projection, p, q), strict=True):
        assert th.allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", [*KINDS, "categorical"])
def test_kl_equals_its_definition(kind):
    p, q = pair(20, dim=4, kind=kind, size=0.5)
    assert th.allclose(p.kl(q), sum(distances(KLProjection(), p, q)), rtol=1e-10)


def test_penalty_of_frobenius_measures_scales():
    projection = FrobeniusProjection()
    for kind, dims in (("diagonal", (-1,)), ("full", (-2, -1))):
        p, q = pair(5, dim=3, kind=kind)
        mean, _ = projection.distance(p, q)
        assert th.allclose(projection.penalty(p, q), mean + (p.scale - q.scale).square().sum(dims))


def test_mean_bound_of_kl_counts_half_the_mahalanobis_distance():
    new, old = pair(5, dim=3, kind="diagonal", size=1.0)
    for projection, factor in ((KLProjection(0.1, 1.0), 0.5), (WassersteinProjection(0.1, 1.0), 1.0)):
        projected = projection(new, old)
        squared = ((projected.mean - old.mean) / old.std).square().sum(-1)
        assert th.allclose(factor * squared, th.full((5,), 0.1, dtype=th.float64))


@pytest.mark.parametrize("bound", [0, -1.0, math.nan, math.inf, th.tensor([1.0, -1.0])])
@pytest.mark.parametrize("argument", ["mean_bound", "cov_bound", "kl_bound"])
def test_bounds_must_be_positive(argument, bound):
    with pytest.raises(ValueError, match=f"{argument}=.* must be positive and finite; a larger bound"):
        KLProjection(**{argument: bound})


def test_bounds_must_be_numbers():
    with pytest.raises(TypeError, match=r"mean_bound='0\.03' is a str: give a positive number or a tensor"):
        KLProjection(mean_bound="0.03")


@every_projection
def test_diagonal_and_full_do_not_mix(name):
    diagonal = gaussian(2, dim=3, kind="diagonal")
    full = gaussian(2, dim=3, kind="full")
    with pytest.raises(ValueError, match=r"new is full \(scale_tril\) and old is diagonal \(std\): build both"):
        make(name)(full, diagonal)


@every_projection
def test_dimensions_must_agree(name):
    with pytest.raises(ValueError, match="new has 3 dimensions and old has 2"):
        make(name)(gaussian(2, dim=3, kind="diagonal"), gaussian(2, dim=2, kind="diagonal"))


def test_a_projection_without_full_covariances_says_so():
    class Diagonal(Projection):
        def cov_distance(self, p, q):
            return (p.scale - q.scale).square().sum(-1)

        def project_std(self, new, old, bound):
            return old.scale

    new, old = pair(3, dim=2, kind="diagonal", size=1.0)
    assert th.equal(Diagonal()(new, old).scale, old.scale)
    with pytest.raises(NotImplementedError, match="Diagonal does not project full covariances"):
        Diagonal()(*pair(3, dim=2, kind="full"))


def test_repr_names_the_bounds():
    assert repr(KLProjection(0.1, 0.2, 0.3)) == "KLProjection(mean_bound=0.1, cov_bound=0.2, kl_bound=0.3)"
    assert repr(WassersteinProjection(0.1, 0.2)) == "WassersteinProjection(mean_bound=0.1, cov_bound=0.2)"


def test_condition_of_the_cases():
    """The ill-conditioned covariances above are what they say."""
    factor = tril(10, dim=6, condition=1e8)
    singular = th.linalg.svdvals(factor)
    assert th.allclose(singular[:, 0] / singular[:, -1], th.tensor(1e4, dtype=th.float64), rtol=1e-6)
