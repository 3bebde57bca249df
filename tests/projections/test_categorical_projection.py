"""The KL projection of categoricals: optimality, the bound, masks, factors, and how bounds are named."""

import itertools
import math
import pickle

import numpy as np
import pytest
import torch as th

from sb3_trl.projections import (
    Categorical,
    FrobeniusProjection,
    Gaussian,
    JointKLProjection,
    KLProjection,
    Projection,
    TrustRegionLayer,
    WassersteinProjection,
    root,
    tilting,
)

from . import oracles
from .cases import ALL, backward, categorical, divergence, gaussian, leaf, moved, pair, tilted

INF = math.inf
SIZES = (3, 2, 4)


def factors(policy: Categorical, sizes) -> list[np.ndarray]:
    """The probabilities of one state, without the padding."""
    return [row[:n].numpy() for row, n in zip(policy.probs, sizes, strict=True)]


@pytest.mark.parametrize("bound", [1e-4, 1e-2, 0.3, 2.0])
@pytest.mark.parametrize("sizes", [(2,), (6,), (30,), SIZES])
def test_solves_the_optimisation_problem(bound, sizes):
    """The smallest divergence to 1e-8, and where it is reached."""
    old = categorical(3, sizes=sizes, spread=1.5)
    new = tilted(old, 2.0)
    projection = KLProjection(kl_bound=bound)
    projected = projection(new, old)
    for i in range(3):
        expected, smallest = oracles.kl_categorical(factors(new[i], sizes), factors(old[i], sizes), bound)
        # The solver's own result may be a little worse.
        assert -1e-6 < divergence(projected[i], new[i]).item() - smallest <= 1e-8 * (1 + smallest)
        for got, factor in zip(factors(projected[i], sizes), expected, strict=True):
            np.testing.assert_allclose(got, factor, atol=2e-6)


def test_log_probabilities_are_interpolated():
    """The centred log-probabilities lie on the segment between the old and the new ones, at one t for all factors."""
    new, old = pair(20, dim=3, kind="categorical", size=2.0)
    projected = KLProjection()(new, old)

    def centred(policy):
        finite = policy.log_probs[..., :3]
        return (finite - finite.mean(-1, keepdim=True)).flatten(-2)

    step, whole = (centred(policy) - centred(old) for policy in (projected, new))
    t = (step * whole).sum(-1) / whole.square().sum(-1)
    assert ((t > 0) & (t < 1)).all()
    assert th.allclose(step, t[:, None] * whole, rtol=1e-9, atol=1e-11)
    assert th.allclose(projected.probs.sum(-1), th.ones(20, 3, dtype=th.float64), rtol=1e-14)


def test_two_factors_are_one_categorical_over_the_product_space():
    sizes = (3, 4)
    old = categorical(8, sizes=sizes)
    new = tilted(old, 2.0)
    actions = th.tensor(list(itertools.product(*[range(n) for n in sizes])))

    def joint(policy):
        return Categorical(th.stack([policy.log_prob(a.expand(8, 2)) for a in actions], -1).unsqueeze(-2))

    projection = KLProjection(kl_bound=0.05)
    assert th.allclose(joint(projection(new, old)).probs, projection(joint(new), joint(old)).probs, rtol=1e-9)


def test_bernoullis_by_hand():
    """Two states: logits are interpolated, since log p − log(1 − p) is linear in t."""
    logits_old = th.tensor([[0.0, 1.0]], dtype=th.float64)
    logits = th.tensor([[2.0, -1.0]], dtype=th.float64)
    new, old = map(Categorical.from_bernoulli_logits, (logits, logits_old))
    projected = KLProjection(kl_bound=0.02)(new, old)
    got = projected.log_probs[..., 1] - projected.log_probs[..., 0]
    t = (got - logits_old) / (logits - logits_old)
    assert th.allclose(t[:, 0], t[:, 1])
    p, q = got.sigmoid(), logits_old.sigmoid()
    assert (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum().item() == pytest.approx(0.02, rel=1e-8)


# --- the promise: no state leaves its trust region ---

#: Actions, factors and number of states; a hundred thousand in all, in each dtype.
BATCHES = (
    (2, 1, 25_000),
    (3, 1, 20_000),
    (6, 1, 20_000),
    (4, 3, 10_000),
    (18, 1, 20_000),
    (200, 1, 4_000),
    (1000, 1, 1_000),
)


def draw(n: int, k: int, n_factors: int, spread: float, dtype: th.dtype) -> tuple[Categorical, Categorical]:
    """Logits up to ±50; every second prediction anywhere, the others near the old policy; every eighth identical."""
    size = (n, n_factors * k)
    old = spread * (2 * th.rand(size, dtype=th.float64) - 1)
    nearness = 10 ** (-6 * th.rand(n, 1, dtype=th.float64))
    nearness[::2] = 1.0
    nearness[::8] = 0.0
    new = (old + 2 * spread * nearness * (2 * th.rand(size, dtype=th.float64) - 1)).clamp(-50, 50)
    return tuple(Categorical.from_logits(x.to(dtype), [k] * n_factors) for x in (new, old))


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
@pytest.mark.parametrize("spread", [0.5, 5.0, 50.0])
def test_bound_holds(dtype, spread):
    projection = KLProjection()
    for k, n_factors, n in BATCHES:
        new, old = draw(n // 3, k, n_factors, spread, dtype)
        new = leaf(new)
        bound = 10 ** (math.log10(1e-8) + (math.log10(5) + 8) * th.rand(n // 3, dtype=th.float64))
        projected = projection(new, old, kl_bound=bound)
        got = divergence(projected, old)
        assert (got <= bound).all()
        inside = projection.is_inside(new, old, kl_bound=bound)
        assert inside.any()
        assert not inside.all()
        assert th.equal(projected.log_probs[inside], new.log_probs[inside])
        # The bound is met, but for what rounding may change.
        rounding = 8 * th.finfo(dtype).eps * n_factors**0.5 * math.log(k + 1)
        assert (got >= (bound.sqrt() * (1 - 1e-9) - rounding).clamp(min=0).square())[~inside].all()
        assert projection.is_inside(projected, old, kl_bound=bound).all()
        assert th.equal(projection(projected, old, kl_bound=bound).log_probs, projected.log_probs)
        backward(projected)
        assert new.log_probs.grad.isfinite().all()


@pytest.mark.parametrize("gap", [100.0, 800.0, 3000.0, 1e8])
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_policies_that_all_but_exclude_what_the_other_takes(gap, dtype):
    """Certain of one action; of two; of another; the last is what a huge negative number makes of a mask."""
    logits = th.tensor([[gap, 0.0, 0.0], [gap, gap, 0.0], [0.0, gap, 0.0], [0.0, 0.0, gap]], dtype=dtype)
    for index in itertools.permutations(range(4)):
        new, old = (Categorical.from_logits(x) for x in (logits, logits[list(index)]))
        new = leaf(new)
        for bound in (1e-4, 0.3, 5.0):
            projected = KLProjection(kl_bound=bound)(new, old)
            assert projected.log_probs.isfinite().all()
            # No number near t resolves t·gap any better.
            assert (divergence(projected, old) <= bound * (1 + 4 * th.finfo(th.float64).eps * gap)).all()
            backward(projected)
            assert new.log_probs.grad.isfinite().all()


def test_identical_policies():
    for dtype in (th.float32, th.float64):
        policy = categorical(50, sizes=(6,), spread=20.0, dtype=dtype)
        assert th.equal(KLProjection(kl_bound=1e-12)(policy, policy).log_probs, policy.log_probs)


def test_states_do_not_disturb_one_another():
    """NaN, from a broken network, stays NaN, alone."""
    new, old = pair(6, dim=2, kind="categorical", size=1.0)
    expected = KLProjection()(new, old)
    log_probs = new.log_probs.clone()
    log_probs[2, 0] = math.nan
    got = KLProjection()(Categorical(log_probs), old)
    kept = [0, 1, 3, 4, 5]
    assert th.allclose(got.log_probs[kept], expected.log_probs[kept], rtol=1e-12)
    assert got.log_probs[2, 0].isnan().all()


def test_few_steps(monkeypatch):
    """How often all states are evaluated at once; what is then left is solved apart."""
    counted = []
    divergence = tilting._Path.divergence
    monkeypatch.setattr(tilting._Path, "divergence", lambda path, t: counted.append(len(t)) or divergence(path, t))
    for bound, most in ((1e-6, 2), (1e-4, 2), (1e-2, 2), (0.1, 3), (1.0, 4)):
        for k in (3, 6, 18):
            new, old = pair(2000, dim=1, kind="categorical", size=1.0)
            old = categorical(2000, sizes=(k,))
            new = tilted(old, 2.0)
            counted.clear()
            KLProjection(kl_bound=bound)(new, old)
            assert sum(counted) <= most * counted[0] * 1.25


@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_the_steps_of_compiled_code_are_enough(monkeypatch, spread):
    for module in (root, tilting):
        monkeypatch.setattr(module, "can_branch", lambda tensor: False)
    old = categorical(5000, sizes=(6,), spread=spread)
    new = tilted(old, spread)
    for bound in (1e-4, 1e-2, 0.3):
        projection = KLProjection(kl_bound=bound)
        projected, inside = projection(new, old), projection.is_inside(new, old)
        got = divergence(projected, old)
        assert (got <= bound).all()
        assert th.allclose(got[~inside], th.full_like(got[~inside], bound), rtol=1e-6)
        assert th.equal(projected.log_probs[inside], new.log_probs[inside])


def test_everything_stays_on_the_device():
    """Of which nothing is read: the numbers are nowhere."""
    mask = th.ones(5, 7, dtype=th.bool, device="meta")
    logits = [th.randn(5, 7, device="meta", requires_grad=True) for _ in range(2)]
    new, old = (Categorical.from_logits(x, (3, 4), mask) for x in logits)
    for bound in (0.01, th.tensor(0.01), th.full((5,), 0.01, device="meta")):
        layer = TrustRegionLayer(KLProjection(), entropy_equality=True)
        projected = layer(new, old, kl_bound=bound, entropy_bound=0.5)
        value = layer.projection.penalty(new, projected) + projected.log_prob(projected.mode()) + projected.entropy()
        (gradient,) = th.autograd.grad(value.sum(), logits[0], retain_graph=True)
        assert gradient.device.type == "meta"


def test_empty_batch():
    policy = categorical(0, sizes=SIZES)
    assert KLProjection()(policy, policy).log_probs.shape == (0, 3, 4)


def test_batches_that_are_not_contiguous():
    new, old = pair(8, dim=3, kind="categorical", size=1.0)
    expected = KLProjection()(new, old).log_probs
    strided = [Categorical(policy.log_probs.permute(2, 1, 0).contiguous().permute(2, 1, 0)) for policy in (new, old)]
    assert not strided[0].log_probs.is_contiguous()
    assert th.allclose(KLProjection()(*strided).log_probs, expected, rtol=1e-13)


def test_old_policies_of_another_dtype():
    new, old = pair(8, dim=3, kind="categorical", size=1.0, dtype=th.float32)
    projected = KLProjection()(new, old)
    assert th.equal(KLProjection()(new, old.double()).log_probs, projected.log_probs)


# --- masks ---


def masks() -> th.Tensor:
    """Of three factors; all possible, some, and one action alone."""
    mask = th.ones(4, sum(SIZES), dtype=th.bool)
    mask[1, [0, 4, 5, 6]] = False
    mask[2, [0, 1, 3, 5, 6, 7]] = False
    mask[3, [1, 7]] = False
    return mask


@pytest.mark.parametrize("bound", [1e-6, 0.1])
def test_impossible_actions_drop_out(bound):
    """The same as without them."""
    logits, logits_old = th.randn(2, 4, sum(SIZES), dtype=th.float64)
    mask = masks()
    new, old = (Categorical.from_logits(x, SIZES, mask) for x in (logits, logits_old))
    new = leaf(new)
    projected = KLProjection(kl_bound=bound)(new, old)
    assert th.equal(projected.impossible, old.impossible)
    cotangent = th.randn_like(new.log_probs).sign()
    projected.log_probs.backward(cotangent)
    assert (new.log_probs.grad[new.impossible] == 0).all()
    for i in range(4):
        parts = mask[i].split(SIZES)
        sizes = [int(part.sum()) for part in parts]
        alone, alone_old = (Categorical.from_logits(x[i, mask[i]], sizes) for x in (logits, logits_old))
        alone = leaf(alone)
        expected = KLProjection(kl_bound=bound)(alone, alone_old)
        kept = ~new.impossible[i]
        alone_kept = ~alone.impossible if alone.impossible is not None else th.ones_like(alone.log_probs).bool()
        assert th.allclose(projected.log_probs[i][kept], expected.log_probs[alone_kept], rtol=1e-9)
        weight = th.zeros_like(alone.log_probs)
        weight[alone_kept] = cotangent[i][kept]
        expected.log_probs.backward(weight)
        assert th.allclose(new.log_probs.grad[i][kept], alone.log_probs.grad[alone_kept], rtol=1e-6, atol=1e-9)


def test_one_possible_action_everywhere():
    mask = th.eye(4, dtype=th.bool)
    new, old = (Categorical.from_logits(th.randn(4, 4), mask=mask) for _ in range(2))
    new = leaf(new)
    projected = KLProjection(kl_bound=1e-8)(new, old)
    assert th.equal(projected.log_probs, new.log_probs)
    backward(projected)
    assert new.log_probs.grad.isfinite().all()
    assert (KLProjection().penalty(new, projected) == 0).all()


def test_penalty_with_impossible_actions():
    logits = th.randn(4, sum(SIZES), dtype=th.float64, requires_grad=True)
    old = Categorical.from_logits(th.randn(4, sum(SIZES), dtype=th.float64), SIZES, masks())
    new = Categorical.from_logits(logits, SIZES, masks())
    projection = KLProjection(kl_bound=1e-3)
    projected = projection(new, old)
    penalty = projection.penalty(new, projected)
    assert th.allclose(penalty, divergence(new, projected))
    (penalty.sum() + projected.entropy().sum()).backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[~masks()] == 0).all()


def test_masks_must_agree():
    logits = th.randn(4, sum(SIZES))
    mask = masks()
    new = Categorical.from_logits(logits, SIZES, mask)
    mask[2, 0] = True
    old = Categorical.from_logits(logits, SIZES, mask)
    for pair_ in ((new, old), (old, new)):
        with pytest.raises(ValueError, match="new and old do not have the same actions as possible at state 2: make"):
            KLProjection()(*pair_)
    with pytest.raises(ValueError, match=r"possible at state \(1, 0\)"):
        KLProjection()(*(Categorical(x.log_probs.unflatten(0, (2, 2))) for x in (new, old)))
    with pytest.raises(ValueError, match="possible: make"):
        KLProjection()(new[2], old[2])


# --- bounds, and what projects what ---


@pytest.mark.parametrize("per_state", [True, False])
def test_bounds_per_state_and_per_call(per_state):
    new, old = pair(12, dim=2, kind="categorical", size=2.0)
    bound = (10 ** -(3 * th.rand(12 if per_state else 1))).squeeze()
    projection = KLProjection(kl_bound=5.0)
    projected = projection(new, old, kl_bound=bound)
    assert th.allclose(divergence(projected, old), bound.double().expand(12), rtol=1e-6)
    assert projection.is_inside(projected, old, kl_bound=bound).all()
    assert not projection.is_inside(projected, old, kl_bound=0.9 * bound).any()
    layer = TrustRegionLayer(projection)
    assert th.equal(layer(new, old, kl_bound=bound).log_probs, projected.log_probs)
    assert th.equal(KLProjection(kl_bound=bound)(new, old).log_probs, projected.log_probs)


@pytest.mark.parametrize("name", ["mean_bound", "cov_bound"])
def test_categoricals_have_a_kl_bound(name):
    policy = categorical(3)
    projection = KLProjection()
    for call in (projection, projection.is_inside, TrustRegionLayer(projection)):
        with pytest.raises(ValueError, match=f"{name} does not bound a Categorical: give kl_bound instead"):
            call(policy, policy, **{name: 0.1})


@pytest.mark.parametrize("name", ALL)
def test_gaussians_have_a_mean_bound_and_a_cov_bound(name):
    policy = gaussian(3, dim=2, kind="diagonal")
    projection = ALL[name]()
    for call in (projection, projection.is_inside, TrustRegionLayer(projection)):
        with pytest.raises(ValueError, match="kl_bound does not bound a Gaussian: give mean_bound and cov_bound"):
            call(policy, policy, kl_bound=0.1)


@pytest.mark.parametrize("make", [WassersteinProjection, FrobeniusProjection, JointKLProjection])
def test_other_projections_are_for_gaussians(make):
    policy = categorical(3)
    projection = make()
    message = f"{make.__name__} is for Gaussians: for categorical policies use KLProjection"
    for call in (
        projection,
        projection.is_inside,
        projection.distance,
        projection.penalty,
        TrustRegionLayer(projection),
        lambda new, old: TrustRegionLayer(projection)(new, old, mean_bound=0.1),
    ):
        with pytest.raises(NotImplementedError, match=message):
            call(policy, policy)


@pytest.mark.parametrize("make", [FrobeniusProjection, JointKLProjection])
def test_other_projections_take_no_kl_bound(make):
    with pytest.raises(ValueError, match=f"kl_bound=0.1 bounds categoricals. {make.__name__} is for Gaussians"):
        make(kl_bound=0.1)


def test_kinds_must_agree():
    discrete, continuous = categorical(3), gaussian(3, dim=1, kind="diagonal")
    with pytest.raises(ValueError, match="new is a Categorical and old a Gaussian: they must be of one kind"):
        KLProjection()(discrete, continuous)
    with pytest.raises(ValueError, match="new is a Gaussian and old a Categorical: they must be of one kind"):
        KLProjection()(continuous, discrete)


def test_actions_must_agree():
    with pytest.raises(ValueError, match="new has 1×4 factors × actions and old has 3×4: they must be equal"):
        KLProjection()(categorical(3), categorical(3, sizes=SIZES))


class Mixture(Projection):
    """A user's own: probabilities are interpolated, as far as their largest difference allows."""

    def cov_distance(self, p, q):
        return (p.scale - q.scale).square().sum(-1)

    def categorical_distance(self, p, q):
        return (p.probs - q.probs).abs().amax((-2, -1))

    def project_categorical(self, new, old, bound):
        t = (bound / self.categorical_distance(new, old)).clamp(max=1)[..., None, None]
        return th.lerp(old.probs, new.probs, t).log()


def test_a_projection_of_the_users_own():
    projection = Mixture(kl_bound=0.05)
    assert repr(projection) == "Mixture(mean_bound=0.03, cov_bound=0.001, kl_bound=0.05)"
    assert Mixture().kl_bound == 0.01
    old = categorical(20, sizes=(5,))
    new = tilted(old, 3.0)
    layer = TrustRegionLayer(projection)
    assert th.allclose(projection.distance(layer(new, old), old)[0], th.full((20,), 0.05, dtype=th.float64))
    assert th.allclose(projection.penalty(new, old), projection.categorical_distance(new, old))
    assert projection.is_inside(layer(new, old, kl_bound=0.02), old, kl_bound=0.03).all()


class Positional(Projection):
    """One from before there were categoricals."""

    def cov_distance(self, p, q):
        return (p.scale - q.scale).square().sum(-1)

    def __call__(self, new, old, mean_bound=None, cov_bound=None):
        return old.with_scale(old.scale, old.mean * (mean_bound or 1.0))


def test_the_layer_calls_projections_that_know_no_categoricals():
    new = gaussian(3, dim=2, kind="diagonal")
    assert th.equal(TrustRegionLayer(Positional())(new, new, 0.5).mean, 0.5 * new.mean)


def test_a_projection_saved_before_there_were_categoricals():
    old_file = pickle.loads(pickle.dumps(KLProjection(0.1, 0.2)))
    del old_file.kl_bound  # what files of earlier versions do not have
    assert repr(old_file) == "KLProjection(mean_bound=0.1, cov_bound=0.2, kl_bound=0.01)"
    new, old = pair(5, dim=2, kind="categorical", size=2.0)
    assert th.equal(old_file(new, old).log_probs, KLProjection()(new, old).log_probs)
    new, old = pair(5, dim=2, kind="diagonal", size=2.0)
    assert th.equal(old_file(new, old).mean, KLProjection(0.1, 0.2)(new, old).mean)


def test_bounds_of_gaussians_may_still_be_given_by_position():
    new, old = pair(5, dim=2, kind="diagonal", size=2.0)
    by_name = TrustRegionLayer(KLProjection())(new, old, mean_bound=0.1, cov_bound=0.2, entropy_bound=3.0)
    by_position = TrustRegionLayer(KLProjection())(new, old, 0.1, 0.2, 3.0)
    assert isinstance(by_position, Gaussian)
    assert th.equal(by_name.scale, by_position.scale)
    assert KLProjection().is_inside(moved(old, 0.0), old, 0.1, 0.2).all()
