"""The Gaussian of the policies is torch's, and its scale starts and stays where it should."""

import math

import pytest
import torch as th
from stable_baselines3.common.distributions import Distribution, kl_divergence
from support import double
from torch.distributions import Independent, MultivariateNormal, Normal

from sb3_trl import ProjectedGaussianDistribution
from sb3_trl.policies.distributions import ScaleHead
from sb3_trl.projections import (
    EntropySchedule,
    FrobeniusProjection,
    Gaussian,
    JointKLProjection,
    KLProjection,
    TrustRegionLayer,
    WassersteinProjection,
)
from sb3_trl.projections.gaussian import kl

BATCH, DIM = 7, 3
CASES = [(covariance, contextual) for covariance in ("diag", "full") for contextual in (False, True)]
all_cases = pytest.mark.parametrize(("covariance", "contextual"), CASES)


def random_parameters(covariance: str, contextual: bool, spread: float = 1.0) -> tuple[th.Tensor, th.Tensor]:
    batch = (BATCH,) if contextual else ()
    std = th.exp(0.5 * spread * th.randn(*batch, DIM))
    if covariance == "diag":
        return th.randn(BATCH, DIM), std
    return th.randn(BATCH, DIM), 0.5 * spread * th.randn(*batch, DIM, DIM).tril(-1) + th.diag_embed(std)


def make_distribution(covariance: str, contextual: bool, spread: float = 1.0) -> ProjectedGaussianDistribution:
    distribution = ProjectedGaussianDistribution(DIM, covariance, contextual)
    return distribution.proba_distribution(*random_parameters(covariance, contextual, spread))


def reference(distribution: ProjectedGaussianDistribution) -> MultivariateNormal:
    gaussian = distribution.gaussian
    return MultivariateNormal(gaussian.mean.double(), scale_tril=gaussian.scale_tril.double())


@all_cases
def test_equals_torch_distributions(covariance, contextual):
    distribution = make_distribution(covariance, contextual)
    expected = reference(distribution)
    actions = th.randn(BATCH, DIM)
    th.testing.assert_close(distribution.log_prob(actions), expected.log_prob(actions.double()).float())
    th.testing.assert_close(distribution.entropy(), expected.entropy().float())
    assert th.equal(distribution.mode(), distribution.gaussian.mean)
    assert distribution.log_prob(actions).shape == distribution.entropy().shape == (BATCH,)


@all_cases
def test_torch_distribution_is_one_event_per_action(covariance, contextual):
    distribution = make_distribution(covariance, contextual)
    torch_distribution = distribution.distribution
    assert isinstance(torch_distribution, Independent if covariance == "diag" else MultivariateNormal)
    assert torch_distribution.batch_shape == (BATCH,)
    assert torch_distribution.event_shape == (DIM,)
    actions = th.randn(BATCH, DIM)
    th.testing.assert_close(torch_distribution.log_prob(actions), distribution.log_prob(actions))


@all_cases
def test_samples_have_the_mean_and_covariance(covariance, contextual):
    distribution = make_distribution(covariance, contextual)
    samples = th.stack([distribution.sample() for _ in range(20_000)]).double()
    expected = reference(distribution)
    error = (samples.mean(0) - expected.mean) / expected.stddev * math.sqrt(len(samples))
    assert error.abs().max() < 4.5
    centred = samples - samples.mean(0)
    covariances = th.einsum("nbi,nbj->bij", centred, centred) / len(samples)
    size = expected.stddev.unsqueeze(-1) * expected.stddev.unsqueeze(-2)
    assert ((covariances - expected.covariance_matrix) / size).abs().max() < 0.05


@all_cases
def test_samples_are_differentiable(covariance, contextual):
    mean, scale = random_parameters(covariance, contextual)
    mean.requires_grad_(), scale.requires_grad_()
    distribution = ProjectedGaussianDistribution(DIM, covariance, contextual).proba_distribution(mean, scale)
    gradients = th.autograd.grad(distribution.sample().sum(), [mean, scale])
    assert th.equal(gradients[0], th.ones_like(mean))
    assert (gradients[1] != 0).any()


@all_cases
def test_actions_from_parameters(covariance, contextual):
    distribution = ProjectedGaussianDistribution(DIM, covariance, contextual)
    assert isinstance(distribution, Distribution)
    mean, scale = random_parameters(covariance, contextual)
    assert th.equal(distribution.actions_from_params(mean, scale, deterministic=True), mean)
    assert not th.equal(distribution.actions_from_params(mean, scale), mean)
    actions, log_prob = distribution.log_prob_from_params(mean, scale)
    assert th.equal(log_prob, distribution.log_prob(actions))
    assert th.equal(distribution.get_actions(deterministic=True), mean)


@all_cases
@pytest.mark.parametrize(
    "projection", [KLProjection(), WassersteinProjection(), FrobeniusProjection(), JointKLProjection()], ids=repr
)
def test_projected_obeys_the_bounds_and_leaves_the_original(covariance, contextual, projection):
    new = make_distribution(covariance, contextual)
    old = make_distribution(covariance, contextual)
    gaussian, mean, scale = new.gaussian, new.gaussian.mean.clone(), new.gaussian.scale.clone()
    layer = TrustRegionLayer(projection)
    projected = new.projected(layer, old)
    assert isinstance(projected, ProjectedGaussianDistribution)
    assert not projection.is_inside(double(gaussian), double(old.gaussian)).any()
    assert projection.is_inside(double(projected.gaussian), double(old.gaussian)).all()
    assert new.gaussian is gaussian
    assert th.equal(new.gaussian.mean, mean)
    assert th.equal(new.gaussian.scale, scale)
    # Bounds of the moment replace the projection's own; a Gaussian will do as the old policy.
    tighter = new.projected(layer, old.gaussian, mean_bound=1e-3, cov_bound=1e-4)
    assert projection.is_inside(double(tighter.gaussian), double(old.gaussian), 1e-3, 1e-4).all()


@all_cases
def test_projected_is_the_prediction_inside_the_bounds(covariance, contextual):
    new = make_distribution(covariance, contextual)
    old = Gaussian(new.gaussian.mean + 1e-4, **{"std" if covariance == "diag" else "scale_tril": new.gaussian.scale})
    projected = new.projected(TrustRegionLayer(KLProjection()), old)
    assert th.equal(projected.gaussian.mean, new.gaussian.mean)
    assert th.equal(projected.gaussian.scale, new.gaussian.scale)


def test_projected_with_an_entropy_bound():
    new, old = make_distribution("diag", True, 0.01), make_distribution("diag", True, 0.01)
    layer = TrustRegionLayer(KLProjection(), EntropySchedule("exp"))
    bound = float(old.entropy().max()) + 0.1
    assert (new.projected(layer, old, entropy_bound=bound).entropy() >= bound - 1e-5).all()


@all_cases
def test_works_with_the_kl_divergence_of_sb3(covariance, contextual):
    p, q = make_distribution(covariance, contextual), make_distribution(covariance, contextual)
    divergence = kl_divergence(p, q)
    assert divergence.shape == (BATCH,)
    mean_part, cov_part = kl(double(p.gaussian), double(q.gaussian))
    th.testing.assert_close(divergence.double(), mean_part + cov_part, rtol=1e-4, atol=1e-5)
    exact = th.distributions.kl_divergence(reference(p), reference(q))
    th.testing.assert_close(mean_part + cov_part, exact)


def test_gaussian_is_normal_in_one_dimension():
    distribution = ProjectedGaussianDistribution(1).proba_distribution(th.tensor([[0.5]]), th.tensor([2.0]))
    action = th.tensor([[1.7]])
    th.testing.assert_close(distribution.log_prob(action), Normal(0.5, 2.0).log_prob(action).squeeze(-1))


# --- the scale ---


def head(full: bool, contextual: bool, init_std: float = 1.0, min_std: float = 1e-5, dim: int = DIM) -> ScaleHead:
    return ScaleHead(8, dim, full, contextual, init_std, min_std)


def diagonal(scale: th.Tensor, full: bool) -> th.Tensor:
    return scale.diagonal(dim1=-2, dim2=-1) if full else scale


@pytest.mark.parametrize("init_std", [2e-5, 0.1, 0.135, 1.0, 2.5, 50.0, 1e4])
@pytest.mark.parametrize("full", [False, True])
def test_non_contextual_scale_starts_at_init_std_exactly(full, init_std):
    scale = head(full, False, init_std)(th.zeros(4, 8))
    expected = th.full((DIM,), init_std)
    assert th.equal(scale, th.diag(expected) if full else expected)


@pytest.mark.parametrize("full", [False, True])
def test_contextual_scale_is_init_std_where_the_network_is_zero(full):
    module = head(full, True, 0.3)
    module.linear.bias.data.zero_()
    expected = th.full((4, DIM), 0.3)
    th.testing.assert_close(module(th.zeros(4, 8)), th.diag_embed(expected) if full else expected)


@pytest.mark.parametrize("contextual", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_min_std_holds(full, contextual):
    module = head(full, contextual, min_std=0.01)
    with th.no_grad():
        for parameter in module.parameters():
            parameter.fill_(-1e6)
    std = diagonal(module(th.ones(4, 8)), full)
    assert th.equal(std, th.full_like(std, 0.01))


@pytest.mark.parametrize("full", [False, True])
def test_a_scale_below_min_std_becomes_min_std(full):
    module = head(full, False, min_std=0.01)
    module.set_scale(th.diag(th.full((DIM,), 0.001)) if full else th.full((DIM,), 0.001))
    std = diagonal(module(th.ones(4, 8)), full)
    assert th.equal(std, th.full_like(std, 0.01))


def random_scale(dim: int, full: bool) -> th.Tensor:
    """A float32 scale with entries log-uniform in 1e-4 … 1e2."""
    std = 10 ** (6 * th.rand(dim, dtype=th.float64) - 4)
    if not full:
        return std.float()
    below = 10 ** (6 * th.rand(dim, dim, dtype=th.float64) - 4) * th.randn(dim, dim).sign()
    return (below.tril(-1) + th.diag(std)).float()


@pytest.mark.parametrize("init_std", [0.01, 1.0, 20.0])
@pytest.mark.parametrize("full", [False, True])
def test_set_scale_comes_back_exactly(full, init_std):
    dim = 40 if full else 500
    module = head(full, False, init_std, dim=dim)
    for _ in range(20):
        scale = random_scale(dim, full)
        module.set_scale(scale)
        assert th.equal(module(th.zeros(1, 8)), scale)
        restored = head(full, False, init_std, dim=dim)
        restored.load_state_dict(module.state_dict())
        assert th.equal(restored(th.zeros(1, 8)), scale)


def test_a_contextual_scale_cannot_be_set():
    with pytest.raises(ValueError, match="contextual scale is the output of a network"):
        head(False, True).set_scale(th.ones(DIM))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("contextual", [False, True])
def test_scale_has_a_batch_dimension_where_it_is_contextual(full, contextual):
    scale = head(full, contextual)(th.randn(4, 8))
    assert scale.shape == (*((4,) if contextual else ()), *((DIM, DIM) if full else (DIM,)))
    if full:
        assert th.equal(scale, scale.tril())
        assert (diagonal(scale, True) > 0).all()


def test_unknown_covariance():
    with pytest.raises(ValueError, match="covariance='diagonal' is unknown: choose 'diag' or 'full'"):
        ProjectedGaussianDistribution(2, "diagonal")


@pytest.mark.parametrize(("init_std", "min_std"), [(0.1, 0.1), (0.1, 0.2), (0.0, -1.0), (1.0, 0.0)])
def test_init_std_must_be_above_min_std(init_std, min_std):
    with pytest.raises(ValueError, match="0 < min_std < init_std is needed"):
        ProjectedGaussianDistribution(2, init_std=init_std, min_std=min_std)
