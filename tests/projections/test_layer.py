"""Algorithm 1: projection and entropy control, in either order, and the entropy the schedule starts from."""

import math

import pytest
import torch as th

from sb3_trl.projections import Categorical, EntropySchedule, KLProjection, TrustRegionLayer, control_entropy

from .cases import CASES, KINDS, SEPARATE, categorical, equal, gaussian, moved, pair

every_kind = pytest.mark.parametrize("kind", KINDS)
of_any_kind = pytest.mark.parametrize("kind", [*KINDS, "categorical"])


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[0] in SEPARATE])
def test_without_entropy_bound_the_layer_is_the_projection(name, kind):
    projection = SEPARATE[name]()
    new, old = pair(6, dim=3, kind=kind)
    assert equal(TrustRegionLayer(projection)(new, old), projection(new, old))


def test_bounds_of_the_call_replace_those_of_the_projection():
    new, old = pair(6, dim=3, kind="diagonal", size=1.0)
    projection = KLProjection(0.1, 0.2)
    projected = TrustRegionLayer(projection)(new, old, mean_bound=0.01, cov_bound=th.tensor(0.02))
    mean, cov = projection.distance(projected, old)
    assert th.allclose(mean, th.full_like(mean, 0.01))
    assert th.allclose(cov, th.full_like(cov, 0.02))


@every_kind
@pytest.mark.parametrize("name", SEPARATE)
@pytest.mark.parametrize("equality", [False, True])
def test_the_last_of_the_two_constraints_has_the_last_word(name, kind, equality):
    """A shrinking covariance and an entropy bound that the trust region does not reach."""
    projection = SEPARATE[name]()
    new, old = pair(6, dim=3, kind=kind)
    new = new.with_scale(0.3 * new.scale)
    bound = old.entropy() + 2.0
    entropy_last = TrustRegionLayer(projection, entropy_equality=equality)
    projected = entropy_last(new, old, entropy_bound=bound)
    assert th.allclose(projected.entropy(), bound, rtol=0, atol=1e-9)
    assert not projection.is_inside(projected, old).any()
    entropy_first = TrustRegionLayer(projection, entropy_equality=equality, entropy_first=True)
    projected = entropy_first(new, old, entropy_bound=bound)
    assert projection.is_inside(projected, old).all()
    assert (projected.entropy() < bound - 0.1).all()
    # Entropy first aims at a larger covariance: the result has more entropy than without.
    assert (projected.entropy() > projection(new, old).entropy()).all()


@pytest.mark.parametrize("equality", [False, True])
def test_the_last_of_the_two_constraints_has_the_last_word_for_categoricals(equality):
    """A prediction that is surer of itself, and an entropy bound that the trust region does not reach."""
    projection = KLProjection(kl_bound=1e-3)
    old = categorical(6, sizes=(4, 3), spread=2.0)
    new = Categorical((1.5 * old.log_probs).log_softmax(-1))
    bound = old.entropy() + 0.9 * (math.log(12) - old.entropy())
    entropy_last = TrustRegionLayer(projection, entropy_equality=equality)
    projected = entropy_last(new, old, entropy_bound=bound)
    assert th.allclose(projected.entropy(), bound, rtol=0, atol=1e-9)
    assert not projection.is_inside(projected, old).any()
    entropy_first = TrustRegionLayer(projection, entropy_equality=equality, entropy_first=True)
    projected = entropy_first(new, old, entropy_bound=bound)
    assert projection.is_inside(projected, old).all()
    assert (projected.entropy() < bound).all()
    assert (projected.entropy() > projection(new, old).entropy()).all()


@of_any_kind
def test_entropy_bound_that_holds_changes_nothing(kind):
    projection = KLProjection()
    new, old = pair(6, dim=3, kind=kind)
    plain = projection(new, old)
    bound = th.minimum(new.entropy(), plain.entropy()).min() - 0.1
    for entropy_first in (False, True):
        layer = TrustRegionLayer(projection, entropy_first=entropy_first)
        assert equal(layer(new, old, entropy_bound=bound), plain)


@of_any_kind
def test_without_projection_only_the_entropy_is_controlled(kind):
    new, old = pair(6, dim=3, kind=kind)
    layer = TrustRegionLayer(None)
    assert layer(new, old) is new
    bound = new.entropy() + 0.01
    for entropy_first in (False, True):
        layer = TrustRegionLayer(None, entropy_first=entropy_first)
        got = layer(new, old, entropy_bound=bound)
        assert not equal(got, new)
        assert equal(got, control_entropy(new, bound))


@of_any_kind
def test_initial_entropy_is_that_of_the_first_batch_and_stays(kind):
    layer = TrustRegionLayer(KLProjection(), EntropySchedule("linear", target_entropy=0.0))
    (first, _), (second, _) = (pair(8, dim=3, kind=kind) for _ in range(2))
    initial = first.entropy().mean().item()
    assert not layer.has_initial_entropy
    assert layer.entropy_bound(first, 0.0) == pytest.approx(initial)
    assert layer.entropy_bound(second, 0.5) == pytest.approx(0.5 * initial)
    assert layer.initial_entropy.item() == pytest.approx(initial)


def test_the_target_entropy_counts_per_factor():
    layer = TrustRegionLayer(KLProjection(), EntropySchedule("linear", target_entropy=0.2))
    old = categorical(8, sizes=(4, 3, 2))
    assert layer.entropy_bound(old, 0.0) == pytest.approx(old.entropy().mean().item())
    assert layer.entropy_bound(old, 1.0) == pytest.approx(0.6)


def test_initial_entropy_is_saved_and_loaded():
    layer = TrustRegionLayer(KLProjection(), EntropySchedule("exp"))
    old = gaussian(8, dim=3, kind="diagonal")
    bound = layer.entropy_bound(old, 0.3)
    loaded = TrustRegionLayer(KLProjection(), EntropySchedule("exp"))
    loaded.load_state_dict(layer.state_dict())
    assert loaded.entropy_bound(moved(old, 1.0), 0.3) == bound


def test_initial_entropy_does_not_remember_the_network():
    old = gaussian(8, dim=3, kind="diagonal")
    old = old.with_scale(old.scale.requires_grad_())
    layer = TrustRegionLayer(KLProjection(), EntropySchedule())
    layer.entropy_bound(old, 0.0)
    assert not layer.initial_entropy.requires_grad


def test_without_schedule_there_is_no_entropy_bound():
    layer = TrustRegionLayer(KLProjection())
    assert layer.entropy_bound(gaussian(8, dim=3, kind="diagonal"), 0.5) is None
    assert not layer.has_initial_entropy


@pytest.mark.parametrize("schedule", [None, EntropySchedule()])
def test_state_is_finite_before_training(schedule):
    """Two models that are alike compare as equal, parameter by parameter and buffer by buffer."""
    layer, other = (TrustRegionLayer(KLProjection(), schedule) for _ in range(2))
    for key, value in layer.state_dict().items():
        assert value.isfinite().all()
        assert th.allclose(value, other.state_dict()[key])


@pytest.mark.parametrize("entropy", [math.nan, 0.0, -1.5])
def test_files_of_earlier_versions_load(entropy):
    """In them NaN meant "not yet", and nothing else was saved; within a larger module, too."""
    old = gaussian(8, dim=3, kind="diagonal")
    layer = TrustRegionLayer(KLProjection(), EntropySchedule("linear"))
    layer.entropy_bound(moved(old, 1.0), 0.0)
    saved = {"0.initial_entropy": th.tensor(entropy, dtype=th.float64)}
    th.nn.Sequential(layer).load_state_dict(saved, strict=True)
    assert list(saved) == ["0.initial_entropy"]
    assert layer.initial_entropy.isfinite()
    assert bool(layer.has_initial_entropy) != math.isnan(entropy)
    expected = old.entropy().mean().item() if math.isnan(entropy) else entropy
    assert layer.entropy_bound(old, 0.0) == pytest.approx(expected)
