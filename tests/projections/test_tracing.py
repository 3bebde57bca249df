"""The projections inside torch.compile and the transformations of torch.func."""

import pytest
import torch as th

from sb3_trl.projections import (
    Categorical,
    Distribution,
    Gaussian,
    KLProjection,
    Projection,
    TrustRegionLayer,
    WassersteinProjection,
    control_entropy,
)
from sb3_trl.projections.tracing import can_branch

from .cases import ALL, KINDS, categorical, leaf, pair, tilted


def make(name: str) -> Projection:
    return WassersteinProjection(commuting=True) if name == "commuting" else ALL[name]()


def summary(projection: Projection, new: Distribution, old: Distribution) -> th.Tensor:
    """A function of everything a training step looks at."""
    projected = projection(new, old)
    value = projected.log_prob(old.mode()).mean() + projected.entropy().mean()
    return value + projection.penalty(new, projected).mean()


def loss(name: str, old: Gaussian):
    """``summary`` as a function of mean and scale."""

    def function(mean: th.Tensor, scale: th.Tensor) -> th.Tensor:
        return summary(make(name), old.with_scale(scale, mean), old)

    return function


def eager_gradient(name: str, new: Gaussian, old: Gaussian) -> tuple[th.Tensor, th.Tensor]:
    new = leaf(new)
    summary(make(name), new, old).backward()
    return new.mean.grad, new.scale.grad


def mixed(kind: str, contextual: bool = True) -> tuple[Gaussian, Gaussian]:
    size = th.tensor([0.0, 1e-4, 0.3, 1.0], dtype=th.float64)
    return pair(4, dim=3, kind=kind, contextual=contextual, size=size)


@pytest.mark.parametrize("name", [*ALL, "commuting"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("contextual", [True, False], ids=["contextual", "shared"])
def test_functional_gradient_and_vmap_equal_eager(name, kind, contextual):
    """``vmap`` over three seeds, each with its own prediction."""
    seeds = [mixed(kind, contextual) for _ in range(3)]
    old = seeds[0][1]
    news = [new.with_scale(new.scale, old.mean + new.mean - own.mean) for new, own in seeds]
    gradient = th.func.grad(loss(name, old), argnums=(0, 1))
    expected = [eager_gradient(name, new, old) for new in news]
    for new, (mean, scale) in zip(news, expected, strict=True):
        got = gradient(new.mean, new.scale)
        assert th.allclose(got[0], mean, rtol=1e-9, atol=1e-12)
        assert th.allclose(got[1], scale if scale is not None else got[1], rtol=1e-9, atol=1e-12)
    mapped = th.func.vmap(gradient)(th.stack([n.mean for n in news]), th.stack([n.scale for n in news]))
    for i, (mean, scale) in enumerate(expected):
        assert th.allclose(mapped[0][i], mean, rtol=1e-9, atol=1e-12)
        assert th.allclose(mapped[1][i], scale, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [*ALL, "commuting"])
@pytest.mark.parametrize("kind", KINDS)
def test_shortcuts_do_not_change_the_result(monkeypatch, name, kind):
    """Where Python may not look at numbers, everything is computed."""
    new, old = mixed(kind)
    projected = make(name)(new, old)
    monkeypatch.setattr(th.compiler, "is_compiling", lambda: True)
    assert not can_branch(new.mean)
    dense = make(name)(new, old)
    assert th.allclose(projected.mean, dense.mean, rtol=1e-10, atol=1e-12)
    assert th.allclose(projected.scale, dense.scale, rtol=1e-10, atol=1e-12)


@pytest.fixture
def backend(request) -> str:
    """Runs what was traced, without the minutes that generating code takes; with --inductor, split up as for that."""
    th._dynamo.reset()
    return "aot_eager" if request.config.getoption("--inductor") else "eager"


@pytest.mark.traced
@pytest.mark.parametrize("name", [*ALL, "commuting"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_compiles_in_one_graph(backend, name, kind):
    """Traced, differentiated and run."""
    new, old = mixed(kind)
    compiled = th.compile(th.func.grad(loss(name, old), argnums=(0, 1)), fullgraph=True, backend=backend)
    for got, expected in zip(compiled(new.mean, new.scale), eager_gradient(name, new, old), strict=True):
        assert th.allclose(got, expected, rtol=1e-9, atol=1e-12)


def test_compiled_code_maps_over_seeds():
    """The diagonal KL projection, with generated code."""
    th._dynamo.reset()
    new, old = mixed("diagonal")
    compiled = th.compile(th.func.vmap(th.func.grad(loss("kl", old), argnums=(0, 1))), fullgraph=True)
    mean, scale = compiled(new.mean.expand(2, 4, 3), new.scale.expand(2, 4, 3))
    expected_mean, expected_scale = eager_gradient("kl", new, old)
    assert th.allclose(mean, expected_mean.expand_as(mean), rtol=1e-8, atol=1e-11)
    assert th.allclose(scale, expected_scale.expand_as(scale), rtol=1e-8, atol=1e-11)


def test_can_branch():
    x = th.ones(3)
    assert can_branch(x)
    seen = []
    th.func.vmap(lambda row: seen.append(can_branch(row)) or row)(x)
    th.func.grad(lambda row: seen.append(can_branch(row)) or row.sum())(x)
    assert seen == [False, False]
    assert not can_branch(th.ones(3, device="meta"))


def test_nothing_is_solved_where_nothing_is_projected(monkeypatch):
    """The root finder and the eigensolver are not called."""

    def fail(*arguments, **options):
        raise AssertionError("called")

    monkeypatch.setattr("sb3_trl.projections.kl.kl_root", fail)
    monkeypatch.setattr(th.linalg, "eigh", fail)
    monkeypatch.setattr(th.linalg, "eigvalsh", fail)
    for kind in KINDS:
        new, old = pair(5, dim=3, kind=kind, size=1e-4)
        for name in ALL:
            assert th.equal(ALL[name]()(new, old).scale, new.scale)
    with pytest.raises(AssertionError, match="called"):
        KLProjection()(*pair(5, dim=3, kind="full", size=1.0))


# --- categoricals ---

SIZES = (3, 4)
MASK = th.tensor(
    [[1, 1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 0, 1], [0, 0, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 1, 1]], dtype=th.bool
)


def states(*batch: int) -> tuple[th.Tensor, Categorical]:
    """Logits of four states, three of them outside the bound, and the old policy; some actions are impossible."""
    old = Categorical.from_logits(th.randn(4, 7, dtype=th.float64), SIZES, MASK)
    size = th.tensor([0.0, 1.0, 3.0, 1.0], dtype=th.float64).unsqueeze(-1)
    logits = th.cat([old.log_probs[:, 0, :3], old.log_probs[:, 1]], -1).masked_fill(~MASK, 0.0)
    return logits + size * th.randn(*batch, 4, 7, dtype=th.float64), old


def categorical_loss(old: Categorical, weight: th.Tensor):
    """What a training step looks at, as a function of the logits, with entropy control."""
    layer = TrustRegionLayer(KLProjection(kl_bound=0.05))

    def function(logits: th.Tensor) -> th.Tensor:
        new = Categorical.from_logits(logits, SIZES, MASK)
        value = summary(layer.projection, new, old)
        controlled = layer(new, old, kl_bound=0.02, entropy_bound=weight)
        return value + controlled.log_prob(old.mode()).mean()

    return function


def entropy_bounds(old: Categorical) -> th.Tensor:
    """Above the entropy of the old policy in every second state, as far as there is room."""
    share = th.tensor([0.5, 0.0, 0.5, 0.5], dtype=th.float64)
    return old.entropy() + share * (old.largest_entropy() - old.entropy())


def test_functional_gradient_and_vmap_of_categoricals_equal_eager():
    logits, old = states(3)
    function = categorical_loss(old, entropy_bounds(old))
    mapped = th.func.vmap(th.func.grad(function))(logits)
    for got, x in zip(mapped, logits, strict=True):
        x = x.clone().requires_grad_()
        function(x).backward()
        assert x.grad.abs().amax() > 1e-3
        assert th.allclose(got, x.grad, rtol=1e-8, atol=1e-11)
        assert th.allclose(th.func.grad(function)(x.detach()), x.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.traced
def test_gradient_of_categoricals_compiles_in_one_graph(backend):
    logits, old = states()
    function = categorical_loss(old, entropy_bounds(old))
    compiled = th.compile(th.func.grad(function), fullgraph=True, backend=backend)
    assert th.allclose(compiled(logits), th.func.grad(function)(logits), rtol=1e-8, atol=1e-11)


@pytest.mark.traced
def test_compiled_categoricals_map_over_seeds(request):
    """With generated code, which takes long to generate, if asked for."""
    th._dynamo.reset()
    logits, old = states(2)
    backend = "inductor" if request.config.getoption("--inductor") else "eager"

    def loss(x: th.Tensor) -> th.Tensor:
        return summary(KLProjection(), Categorical.from_logits(x, SIZES, MASK), old)

    function = th.func.vmap(th.func.grad(loss))
    compiled = th.compile(function, fullgraph=True, backend=backend)
    assert th.allclose(compiled(logits), function(logits), rtol=1e-8, atol=1e-11)


def test_vmap_over_policies_states_and_bounds():
    """Values, state by state."""
    old = categorical(6, sizes=SIZES)
    new = tilted(old, 1.0)
    bound = th.linspace(0.001, 0.1, 6, dtype=th.float64)

    def one(log_probs, log_probs_old, bound):
        return KLProjection()(Categorical(log_probs), Categorical(log_probs_old), kl_bound=bound).log_probs

    mapped = th.func.vmap(one)(new.log_probs, old.log_probs, bound)
    assert th.allclose(mapped, KLProjection()(new, old, kl_bound=bound).log_probs, rtol=1e-9)


def test_entropy_that_cannot_be_reached_is_approached_where_nobody_looks():
    """Under ``vmap``: the uniform policy above, the likeliest action below."""
    policy = categorical(5, sizes=(4,))

    def entropy(log_probs, bound):
        return control_entropy(Categorical(log_probs), bound, equality=True).entropy()

    bounds = th.tensor([2.0, 1.0, -1.0], dtype=th.float64)
    got = th.func.vmap(lambda bound: entropy(policy.log_probs, bound))(bounds)
    assert th.allclose(got[0], th.full((5,), 4.0, dtype=th.float64).log())
    assert th.allclose(got[1], th.ones(5, dtype=th.float64))
    assert (got[2] < 1e-3).all()
