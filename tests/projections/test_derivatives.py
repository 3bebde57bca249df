"""Derivatives in every mode: first ones are right, second ones are right or an error, constants have none."""

import pytest
import torch as th
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from sb3_trl.projections import (
    Categorical,
    EntropySchedule,
    Gaussian,
    KLProjection,
    Projection,
    TrustRegionLayer,
    WassersteinProjection,
    control_entropy,
)
from sb3_trl.projections.derivatives import Derivative, _check_nesting, constant, with_derivative
from sb3_trl.projections.expected_kl import covariance_share, expected_kl, interpolate_covariance, mean_share
from sb3_trl.projections.gaussian import frobenius, kl, wasserstein
from sb3_trl.projections.root import implicit_gradient
from sb3_trl.projections.spectral import spd_sqrt, sqrt_difference

from .cases import ALL, KINDS, categorical, gaussian, moved, pair, tilted


class LogProjection(Projection):
    """A user's own, with standard deviations moved in their logarithms and covariances scaled."""

    def cov_distance(self, p, q):
        return (p.log_det_scale - q.log_det_scale).square()

    def project_std(self, new, old, bound):
        return old.scale * (new.scale / old.scale) ** self._share(new, old, bound)[..., None]

    def project_tril(self, new, old, bound):
        return (
            old.scale * (new.scale.diagonal(dim1=-2, dim2=-1).prod(-1) * self._share(new, old, bound))[..., None, None]
        )

    def _share(self, new, old, bound):
        return (self.cov_distance(new, old) / bound).clamp(min=1).rsqrt()


NAMES = [*ALL, "commuting", "own"]
SIZES = {"inside": [1e-4] * 3, "outside": [0.5, 0.8, 1.0], "mixed": [0.0, 1e-4, 0.8]}
every_projection = pytest.mark.parametrize("name", NAMES)
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(name: str) -> Projection:
    if name == "own":
        return LogProjection(0.03, 0.01)
    return WassersteinProjection(0.03, 0.01, commuting=True) if name == "commuting" else ALL[name](0.03, 0.01)


def signs(like: th.Tensor) -> th.Tensor:
    return th.randn_like(like).sign()


def steps(new: Gaussian) -> tuple[th.Tensor, th.Tensor]:
    """A direction in mean and scale, of random signs."""
    step = signs(new.scale)
    return signs(new.mean), step if new.is_diagonal else step.tril()


def dual(x: th.Tensor, step: th.Tensor) -> th.Tensor:
    return forward_ad.make_dual(x, step)


def check_first(
    function, inputs: tuple[th.Tensor, ...], tangents: tuple[th.Tensor, ...], tolerance: float = 1e-6
) -> None:
    """⟨u, J v⟩ in forward mode, in its older interface, in reverse mode and by finite differences."""
    outputs, forward = jvp(function, inputs, tangents)
    with forward_ad.dual_level():
        duals = [dual(x, v) for x, v in zip(inputs, tangents, strict=True)]
        older = [forward_ad.unpack_dual(y).tangent for y in function(*duals)]
    cotangents = tuple(signs(y) for y in outputs)
    _, pull = vjp(function, *inputs)
    reverse = sum((g * v).sum() for g, v in zip(pull(cotangents), tangents, strict=True))
    h = 1e-6
    ahead, behind = (function(*[x + s * h * v for x, v in zip(inputs, tangents, strict=True)]) for s in (1, -1))
    differences = sum((u * (a - b)).sum() for u, a, b in zip(cotangents, ahead, behind, strict=True)) / (2 * h)
    value = sum((u * y).sum() for u, y in zip(cotangents, forward, strict=True))
    value_older = sum((u * y).sum() for u, y in zip(cotangents, older, strict=True) if y is not None)
    assert th.allclose(value, reverse, rtol=1e-9, atol=1e-10)
    assert th.allclose(value_older, reverse, rtol=1e-9, atol=1e-10)
    assert th.allclose(reverse, differences, rtol=tolerance, atol=10 * tolerance)


@every_projection
@every_kind
@pytest.mark.parametrize("contextual", [True, False], ids=["contextual", "shared"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("per_state", [True, False], ids=["bounds", "bound"])
def test_first_derivatives_of_the_projection(name, kind, contextual, size, per_state):
    new, old = pair(3, dim=3, kind=kind, contextual=contextual, size=th.tensor(SIZES[size], dtype=th.float64))
    bounds = [th.tensor([0.01, 0.02, 0.03], dtype=th.float64)] * 2 if per_state else []

    def function(mean, scale):
        projected = make(name)(new.with_scale(scale, mean), old, *bounds)
        return projected.mean, projected.scale

    check_first(function, (new.mean, new.scale), steps(new))


@every_projection
@every_kind
def test_first_derivatives_of_distance_and_penalty(name, kind):
    new, old = pair(3, dim=3, kind=kind, size=0.8)
    projection = make(name)
    target = projection(new, old)

    def function(mean, scale):
        predicted = new.with_scale(scale, mean)
        return *projection.distance(predicted, old), projection.penalty(predicted, target)

    check_first(function, (new.mean, new.scale), steps(new))


@pytest.mark.parametrize("function", [kl, wasserstein, frobenius])
@every_kind
def test_first_derivatives_of_distances_in_the_second_argument(function, kind):
    p, q = pair(3, dim=3, kind=kind, size=0.8)
    check_first(lambda mean, scale: function(p, q.with_scale(scale, mean)), (q.mean, q.scale), steps(q))


@pytest.mark.parametrize("name", ["kl", "w2", "joint_kl"])
@every_kind
@pytest.mark.parametrize("equality", [True, False])
@pytest.mark.parametrize("entropy_first", [True, False])
def test_first_derivatives_of_the_layer(name, kind, equality, entropy_first):
    new, old = pair(3, dim=3, kind=kind, size=0.8)
    bound = old.entropy() + th.tensor([0.05, -0.05, -3.0], dtype=th.float64)
    layer = TrustRegionLayer(make(name), EntropySchedule(), equality, entropy_first)

    def function(mean, scale):
        predicted = new.with_scale(scale, mean)
        projected = layer(predicted, old, entropy_bound=bound)
        return projected.mean, projected.scale, projected.entropy(), layer_penalty(predicted)

    def layer_penalty(predicted):
        return layer.projection.penalty(predicted, old)

    check_first(function, (new.mean, new.scale), steps(new))


@every_kind
def test_first_derivatives_of_the_expected_divergence(kind):
    new, old = pair(5, dim=3, kind=kind, contextual=False, size=0.5)

    def function(mean, scale):
        predicted = new.with_scale(scale, mean)
        parts = expected_kl(predicted, old)
        share = covariance_share(*parts, 0.05)
        intermediate = old.with_scale(interpolate_covariance(predicted, old, share))
        return *parts, share, intermediate.scale, mean_share(old, predicted, old, 0.05)

    inputs, directions = (new.mean, new.scale), steps(new)
    with forward_ad.dual_level():
        tangents = [forward_ad.unpack_dual(y).tangent for y in function(*map(dual, inputs, directions))]
    ahead, behind = (function(*[x + h * v for x, v in zip(inputs, directions, strict=True)]) for h in (1e-6, -1e-6))
    for tangent, a, b in zip(tangents, ahead, behind, strict=True):
        assert th.allclose(tangent, (a - b) / 2e-6, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("function", [spd_sqrt, sqrt_difference])
def test_first_derivatives_of_square_roots(function):
    matrix = gaussian(3, dim=3, kind="full").covariance
    step = signs(matrix)
    check_first(lambda x: (function(x),), (matrix,), (step + step.mT,))


MASKS = {
    "free": th.ones(3, 7, dtype=th.bool),
    "masked": th.tensor([[1, 1, 0, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1, 1], [1, 1, 1, 0, 1, 1, 0]], dtype=th.bool),
}


def logits_of_two_factors(mask: str, size: list[float], spread: float = 1.0):
    """Logits, and how to make policies of them: three actions in the first factor and four in the second."""
    old = spread * th.randn(3, 7, dtype=th.float64)
    new = old + th.tensor(size, dtype=th.float64).unsqueeze(-1) * th.randn_like(old)
    return new, old, lambda logits: Categorical.from_logits(logits, (3, 4), MASKS[mask])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("spread", [1.0, 8.0])
@pytest.mark.parametrize("per_state", [True, False], ids=["bounds", "bound"])
def test_first_derivatives_of_the_projection_of_categoricals(size, mask, spread, per_state):
    new, old, policy = logits_of_two_factors(mask, SIZES[size], spread)
    bound = th.tensor([0.01, 0.02, 0.03], dtype=th.float64) if per_state else 0.01
    projection = KLProjection(kl_bound=bound)
    finite = ~policy(new).log_probs.isneginf()

    def function(logits):
        return (projection(policy(logits), policy(old)).log_probs[finite],)

    check_first(function, (new,), (signs(new),))
    # Impossible actions have no part in it, whatever is sent back from them.
    pull = vjp(lambda logits: projection(policy(logits), policy(old)).log_probs, new)[1]
    (gradient,) = pull(finite.to(new.dtype))
    assert th.allclose(pull(th.ones_like(gradient).new_ones(finite.shape))[0], gradient)


def test_log_probabilities_need_not_be_normalised_to_be_differentiated():
    """With respect to the log-probabilities themselves; a constant added to them changes nothing."""
    old = categorical(4, sizes=(5,))
    new = tilted(old, 1.0)

    def function(log_probs):
        return (KLProjection()(Categorical(log_probs), old).log_probs,)

    check_first(function, (new.log_probs,), (signs(new.log_probs),))
    assert jvp(function, (new.log_probs,), (th.ones_like(new.log_probs),))[1][0].abs().max() < 1e-14


@pytest.mark.parametrize("mask", MASKS)
def test_first_derivatives_of_distance_and_penalty_of_categoricals(mask):
    new, old, policy = logits_of_two_factors(mask, SIZES["mixed"])
    projection = KLProjection()
    target = projection(policy(new), policy(old))

    def function(logits):
        return *projection.distance(policy(logits), policy(old)), projection.penalty(policy(logits), target)

    check_first(function, (new,), (signs(new),))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("equality", [True, False])
@pytest.mark.parametrize("entropy_first", [True, False])
def test_first_derivatives_of_the_layer_with_categoricals(mask, equality, entropy_first):
    new, old, policy = logits_of_two_factors(mask, SIZES["outside"])
    old = policy(old)
    share = th.tensor([0.5, -0.1, 0.2], dtype=th.float64)
    bound = old.entropy() + share * (old.largest_entropy() - old.entropy())
    layer = TrustRegionLayer(KLProjection(), EntropySchedule(), equality, entropy_first)
    finite = ~old.log_probs.isneginf()

    def function(logits):
        projected = layer(policy(logits), old, entropy_bound=bound)
        return projected.log_probs[finite], projected.entropy(), layer.projection.penalty(policy(logits), old)

    check_first(function, (new,), (signs(new),))


# --- derivatives of second order ---


def double_backward(function, x):
    x = x.detach().requires_grad_()
    (gradient,) = th.autograd.grad(function(x), x, create_graph=True)
    return th.stack([th.autograd.grad(g, x, retain_graph=True)[0] for g in gradient.flatten()]).view(*x.shape, *x.shape)


def forward_over_reverse(function, x):
    rows = []
    for v in th.eye(x.numel(), dtype=x.dtype):
        with forward_ad.dual_level():
            point = dual(x.detach().requires_grad_(), v.view_as(x))
            (gradient,) = th.autograd.grad(function(point), point, create_graph=True)
            rows.append(forward_ad.unpack_dual(gradient).tangent)
    return th.stack(rows, -1).view(*x.shape, *x.shape)


def reverse_over_forward(function, x):
    rows = []
    for v in th.eye(x.numel(), dtype=x.dtype):
        x = x.detach().requires_grad_()
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(function(dual(x, v.view_as(x)))).tangent
        rows.append(th.autograd.grad(tangent, x)[0])
    return th.stack(rows).view(*x.shape, *x.shape)


SECOND = {
    "double backward": double_backward,
    "forward over reverse": forward_over_reverse,
    "reverse over forward": reverse_over_forward,
    "hessian": lambda f, x: hessian(f)(x),
    "jacrev(jacrev)": lambda f, x: jacrev(jacrev(f))(x),
    "jacfwd(jacrev)": lambda f, x: jacfwd(jacrev(f))(x),
    "jacrev(jacfwd)": lambda f, x: jacrev(jacfwd(f))(x),
    "jacfwd(jacfwd)": lambda f, x: jacfwd(jacfwd(f))(x),
}
in_every_mode = pytest.mark.parametrize("mode", SECOND)


def objective(y: th.Tensor) -> th.Tensor:
    """A function with a second derivative of its own."""
    return (y * th.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y) + 1).pow(3).sum()


def finite_differences(function, x: th.Tensor) -> th.Tensor:
    h = 1e-5
    rows = []
    for v in h * th.eye(x.numel(), dtype=x.dtype):
        v = v.view_as(x)
        rows.append((grad(function)(x + v) - grad(function)(x - v)) / (2 * h))
    return th.stack(rows).view(*x.shape, *x.shape)


def check_second(function, x: th.Tensor, mode: str) -> None:
    got = SECOND[mode](function, x)
    assert th.allclose(got, finite_differences(function, x), rtol=1e-5, atol=1e-5)


@in_every_mode
@pytest.mark.parametrize(("name", "kind"), [("w2", "diagonal"), ("frobenius", "diagonal"), ("frobenius", "full")])
def test_second_derivatives_of_scales_in_closed_form(mode, name, kind):
    new, old = pair(3, dim=2, kind=kind, size=th.tensor(SIZES["mixed"], dtype=th.float64))
    projection = make(name)

    def function(scale):
        scale = scale if kind == "diagonal" else scale.tril()
        predicted = new.with_scale(scale)
        projected = projection(predicted, old)
        return objective(projected.scale) + objective(th.stack(projection.distance(predicted, old)))

    check_second(function, new.scale, mode)


@in_every_mode
@every_kind
@pytest.mark.parametrize("name", ["kl", "w2", "frobenius"])
def test_second_derivatives_of_means(mode, name, kind):
    new, old = pair(3, dim=2, kind=kind, size=th.tensor(SIZES["mixed"], dtype=th.float64))

    def function(mean):
        projected = make(name)(new.with_scale(new.scale, mean), old)
        return objective(projected.mean) + make(name).penalty(new.with_scale(new.scale, mean), old).sum()

    check_second(function, new.mean, mode)


@in_every_mode
@every_kind
def test_second_derivatives_of_the_divergence(mode, kind):
    """Also where it is zero: there they are the Fisher information."""
    new, old = pair(3, dim=2, kind=kind, size=th.tensor(SIZES["mixed"], dtype=th.float64))

    def function(scale):
        return kl(new.with_scale(scale if kind == "diagonal" else scale.tril()), old)[1].sum()

    check_second(function, new.scale, mode)


ONCE = {
    "kl": KINDS,
    "w2": ("full",),
    "commuting": ("full",),
    "joint_kl": KINDS,
}


@in_every_mode
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in ONCE.items() for kind in kinds])
@pytest.mark.parametrize("contextual", [True, False], ids=["contextual", "shared"])
def test_second_derivatives_of_scales_found_by_a_solver_are_an_error(mode, name, kind, contextual):
    new, old = pair(3, dim=2, kind=kind, contextual=contextual, size=th.tensor(SIZES["mixed"], dtype=th.float64))
    for linear in (True, False):

        def function(scale, linear=linear):
            scale = make(name)(new.with_scale(scale), old).scale
            return scale.sum() if linear else objective(scale)

        with pytest.raises(RuntimeError, match=r"second order was asked for, but the .* can be differentiated once"):
            SECOND[mode](function, new.scale)


@in_every_mode
def test_second_derivatives_of_the_mean_of_the_joint_projection_are_an_error(mode):
    new, old = pair(3, dim=2, kind="diagonal", size=1.0)
    with pytest.raises(RuntimeError, match="the root of an equation can be differentiated once"):
        SECOND[mode](lambda mean: make("joint_kl")(new.with_scale(new.scale, mean), old).mean.sum(), new.mean)


@in_every_mode
@pytest.mark.parametrize("name", ["w2", "commuting"])
def test_second_derivatives_of_distances_from_eigenvalues_are_an_error(mode, name):
    new, old = pair(3, dim=2, kind="full", size=1.0)
    for quantity in ("cov_distance", "penalty"):
        with pytest.raises(RuntimeError, match="the square root of a matrix can be differentiated once"):
            SECOND[mode](lambda x, q=quantity: getattr(make(name), q)(new.with_scale(x), old).sum(), new.scale)


@in_every_mode
@pytest.mark.parametrize("what", ["projection", "entropy"])
def test_second_derivatives_of_categoricals_found_by_a_solver_are_an_error(mode, what):
    new, old, policy = logits_of_two_factors("free", SIZES["mixed"])
    for linear in (True, False):

        def function(logits, linear=linear):
            if what == "projection":
                log_probs = KLProjection()(policy(logits), policy(old)).log_probs
            else:
                log_probs = control_entropy(policy(logits), 1.9).log_probs
            log_probs = log_probs.flatten(-2)[:, [0, 1, 2, 4, 5, 6, 7]]
            return log_probs.sum() if linear else objective(log_probs)

        with pytest.raises(RuntimeError, match="the projection of log-probabilities can be differentiated once"):
            SECOND[mode](function, new)


@in_every_mode
def test_second_derivatives_of_the_penalty_of_categoricals(mode):
    new, old, policy = logits_of_two_factors("masked", SIZES["mixed"])
    target = KLProjection()(policy(new), policy(old))
    impossible = target.impossible

    def function(values):
        logits = values.masked_fill(impossible, -float("inf"))
        # The tangents of PyTorch's log_softmax and logsumexp cannot be differentiated.
        predicted = Categorical(logits - logits.exp().sum(-1, keepdim=True).log())
        return KLProjection().penalty(predicted, target).sum()

    check_second(function, policy(new).log_probs.masked_fill(impossible, 0.0), mode)


@in_every_mode
def test_second_derivatives_of_a_users_projection(mode):
    new, old = pair(3, dim=2, kind="diagonal", size=1.0)
    check_second(lambda scale: objective(make("own")(new.with_scale(scale), old).scale), new.scale, mode)


def test_second_derivatives_in_compiled_code_are_an_error():
    th._dynamo.reset()
    new, old = pair(3, dim=2, kind="diagonal", size=1.0)
    function = grad(lambda x: grad(lambda x: KLProjection()(new.with_scale(x), old).scale.sum())(x).sum())
    with pytest.raises(Exception, match="the KL projection of standard deviations can be differentiated once"):
        th.compile(function, backend="eager")(new.scale)


@pytest.mark.parametrize("outer", [jacrev, jacfwd])
@pytest.mark.parametrize("inner", [jacrev, jacfwd])
def test_nested_transformations_are_noticed(outer, inner):
    """What compiled code asks; ``vmap`` is no differentiation."""

    def function(x):
        _check_nesting("a cube")
        return x

    x = th.ones(2)
    assert th.equal(vmap(inner(function))(x.expand(2, 2))[0], th.eye(2))
    with pytest.raises(RuntimeError, match="a cube can be differentiated once"):
        outer(inner(function))(x)


@every_kind
def test_first_derivatives_in_compiled_code(kind):
    """Forward mode; reverse mode is in ``test_tracing.py``."""
    th._dynamo.reset()
    new, old = pair(3, dim=2, kind=kind, size=th.tensor(SIZES["mixed"], dtype=th.float64))

    def function(x, step):
        return jvp(lambda x: KLProjection(0.03, 0.01)(new.with_scale(x), old).scale, (x,), (step,))[1]

    step = steps(new)[1]
    got = th.compile(function, backend="eager", fullgraph=True, dynamic=False)(new.scale, step)
    assert th.allclose(got, function(new.scale, step), rtol=1e-9, atol=1e-12)


def test_first_derivatives_of_categoricals_in_compiled_code():
    th._dynamo.reset()
    new, old, policy = logits_of_two_factors("masked", SIZES["mixed"])
    old = policy(old)
    finite = ~old.log_probs.isneginf()

    def function(x, step):
        projected = jvp(lambda x: KLProjection()(policy(x), old).log_probs, (x,), (step,))[1]
        return th.where(finite, projected, 0.0)

    step = signs(new)
    got = th.compile(function, backend="eager", fullgraph=True, dynamic=False)(new, step)
    assert th.allclose(got, function(new, step), rtol=1e-9, atol=1e-12)


def test_what_a_first_derivative_is_linear_in_may_be_differentiated():
    """J v in v, and u J in u, in either mode."""
    new, old = pair(3, dim=2, kind="diagonal", size=1.0)
    v, u = signs(new.scale), signs(new.scale)

    def function(scale):
        return KLProjection()(new.with_scale(scale), old).scale

    jacobian = jacrev(function)(new.scale)
    pull = vjp(function, new.scale)[1]
    expected = th.einsum("ijkl,ij->kl", jacobian, u)
    assert th.allclose(jvp(lambda u: pull(u)[0], (u,), (u,))[1], expected)
    assert th.allclose(vjp(lambda v: jvp(function, (new.scale,), (v,))[1], v)[1](u)[0], expected)


# --- constants ---


@every_projection
@every_kind
def test_old_policy_and_bounds_have_no_derivatives(name, kind):
    """Neither tangents nor gradients."""
    new, old = pair(3, dim=3, kind=kind, size=th.tensor(SIZES["mixed"], dtype=th.float64))
    bound = th.full((3,), 0.02, dtype=th.float64)
    entropy = old.entropy() + 0.02
    layer = TrustRegionLayer(make(name))

    def function(mean, scale, bound, entropy):
        projected = layer(new, old.with_scale(scale, mean), bound, bound, entropy)
        return projected.mean, projected.scale

    inputs = (old.mean, old.scale, bound, entropy)
    plain = function(*inputs)
    values, tangents = jvp(function, inputs, tuple(map(th.ones_like, inputs)))
    for value, tangent, expected in zip(values, tangents, plain, strict=True):
        assert th.allclose(value, expected, rtol=1e-9)
        assert (tangent == 0).all()
    assert all((g == 0).all() for g in vjp(function, *inputs)[1](tuple(map(th.ones_like, plain))))
    with forward_ad.dual_level():
        duals = function(*[dual(x, th.ones_like(x)) for x in inputs])
        assert all(forward_ad.unpack_dual(y).tangent is None for y in duals)
    leaves = [x.clone().requires_grad_() for x in inputs]
    assert not any(y.requires_grad for y in function(*leaves))


@every_projection
@every_kind
def test_bounds_of_the_projection_have_no_derivatives(name, kind):
    new, old = pair(3, dim=3, kind=kind, size=1.0)
    projection = make(name)
    projection.mean_bound = projection.cov_bound = th.tensor(0.01, requires_grad=True)
    projected = projection(new, old)
    assert not projected.mean.requires_grad
    assert not projected.scale.requires_grad


def test_old_categoricals_and_bounds_have_no_derivatives():
    new, old, policy = logits_of_two_factors("masked", SIZES["mixed"])
    new = policy(new)
    old = policy(old)
    kept = ~old.log_probs.isneginf()
    inputs = (old.log_probs[kept], th.full((3,), 0.02, dtype=th.float64), old.entropy() + 0.02)
    layer = TrustRegionLayer(KLProjection())

    def function(values, bound, entropy):
        before = Categorical(old.log_probs.masked_scatter(kept, values))
        return layer(new, before, kl_bound=bound, entropy_bound=entropy).log_probs[kept]

    tangents = jvp(function, inputs, tuple(map(th.ones_like, inputs)))[1]
    assert (tangents == 0).all()
    assert all((g == 0).all() for g in vjp(function, *inputs)[1](th.ones_like(inputs[0])))
    assert not function(*[x.clone().requires_grad_() for x in inputs]).requires_grad
    projection = KLProjection(kl_bound=0.01)
    projection.kl_bound = th.tensor(0.01, requires_grad=True)
    assert not projection(new, old).log_probs.requires_grad


@every_kind
def test_the_bound_of_the_entropy_has_no_derivatives(kind):
    policy = gaussian(3, dim=3, kind=kind)
    assert not control_entropy(policy, (policy.entropy() + 1).requires_grad_()).scale.requires_grad


@every_kind
def test_detach_drops_tangents(kind):
    policy = gaussian(3, dim=3, kind=kind)
    values = jvp(lambda x: policy.with_scale(x).detach().scale, (policy.scale,), (policy.scale,))
    assert th.equal(values[0], policy.scale)
    assert (values[1] == 0).all()


# --- the mechanism itself ---

CUBE = Derivative("a cube", lambda step, x: 3 * x**2 * step, lambda gradient, x: 3 * x**2 * gradient)


def cube(x: th.Tensor) -> th.Tensor:
    return with_derivative(constant(x) ** 3, x, CUBE, constant(x))


def broadcast_cube(x: th.Tensor) -> th.Tensor:
    """From ``(3,)`` to ``(2, 3)``."""
    own = constant(x).expand(2, 3)
    return with_derivative(own**3, x, CUBE, own)


@pytest.mark.parametrize("function", [cube, broadcast_cube])
def test_with_derivative(function):
    x = th.tensor([0.5, -2.0, 0.0], dtype=th.float64)
    check_first(lambda x: (function(x),), (x,), (signs(x),))
    mapped = vmap(grad(lambda x: function(x).sum()))(th.stack([x, x + 1]))
    expected = th.stack([grad(lambda x: function(x).sum())(x + i) for i in (0, 1)])
    assert th.equal(mapped, expected)
    forward = vmap(lambda x, v: jvp(function, (x,), (v,))[1])(th.stack([x, x + 1]), th.stack([x, x]))
    assert th.allclose(forward[1], jvp(function, (x + 1,), (x,))[1])


def test_with_derivative_keeps_the_dtypes_of_value_and_input():
    x = th.tensor([0.5, -2.0], requires_grad=True)
    wide = constant(x).double()
    y = with_derivative((wide**3).float(), x, CUBE, wide)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == th.float32
    assert th.allclose(x.grad.double(), 3 * wide**2)


def test_with_derivative_may_be_given_a_graph_that_is_not_differentiated():
    x = th.tensor([0.5, -2.0], requires_grad=True)
    (gradient,) = th.autograd.grad(cube(x).sum(), x, create_graph=True)
    assert th.allclose(gradient, 3 * x.detach() ** 2)
    with pytest.raises(RuntimeError, match="a cube can be differentiated once"):
        gradient.sum().backward()


def test_implicit_gradient_in_forward_mode():
    """t(c) with c·t² = ε: dt/dc = −t/(2c)."""
    c = th.tensor([2.0, 8.0], dtype=th.float64)

    def function(c):
        t = (0.5 / c.detach()).sqrt()
        return (implicit_gradient(t, c * t**2, 2 * c.detach() * t**2),)

    check_first(function, (c,), (signs(c),))


def test_seeds_in_one_map():
    """The gradients of three predictions at once, and of each."""
    new, old = pair(3, dim=3, kind="diagonal", size=1.0)
    function = grad(lambda x: objective(KLProjection()(new.with_scale(x), old).scale))
    scales = th.stack([moved(old, 0.5).scale for _ in range(3)])
    for got, scale in zip(vmap(function)(scales), scales, strict=True):
        assert th.allclose(got, function(scale), rtol=1e-9)
