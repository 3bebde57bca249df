"""The projections inside torch.compile and the transformations of torch.func."""

import pytest
import torch as th

from sb3_trl.projections import Gaussian, KLProjection, Projection, WassersteinProjection
from sb3_trl.projections.tracing import can_branch

from .cases import ALL, KINDS, leaf, pair


def make(name: str) -> Projection:
    return WassersteinProjection(commuting=True) if name == "commuting" else ALL[name]()


def summary(projection: Projection, new: Gaussian, old: Gaussian) -> th.Tensor:
    """A function of everything a training step looks at."""
    projected = projection(new, old)
    value = projected.log_prob(old.mean).mean() + projected.entropy().mean()
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


@pytest.mark.parametrize("name", [*ALL, "commuting"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_compiles_in_one_graph(name, kind):
    """Traced, differentiated and run, without the minutes that generating code takes."""
    th._dynamo.reset()
    new, old = mixed(kind)
    compiled = th.compile(th.func.grad(loss(name, old), argnums=(0, 1)), fullgraph=True, backend="aot_eager")
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
