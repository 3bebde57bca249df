"""Parameters of action distributions say what SB3's and torch's objects say."""

import pytest
import torch as th
from stable_baselines3.common.distributions import StateDependentNoiseDistribution, kl_divergence
from support import ACTION_SPACES, DISTRIBUTIONS, ActionEnv, OwnDistributionPolicy, small, vec_env

from sb3_trl import FixPO
from sb3_trl.policies.action_parameters import Actions, ActionsAndValues, action_parameters

pytestmark = pytest.mark.usefixtures("torch_keeps_its_settings")


def make(space="box", policy="MlpPolicy", **kwargs) -> FixPO:
    return small(FixPO, vec_env(cls=ActionEnv, action_space=ACTION_SPACES[space]), policy, **kwargs)


def test_a_distribution_that_cannot_be_made_is_not_finite():
    model = make(policy=OwnDistributionPolicy)
    with th.no_grad():
        model.policy.action_net.bias[0] = th.nan
    with pytest.raises(FloatingPointError, match="distribution cannot be made: Expected parameter loc"):
        Actions(model.policy)(th.zeros(3, 4))


@pytest.mark.parametrize(("space", "kwargs"), DISTRIBUTIONS)
def test_parameters_without_torchs_objects_are_those_of_the_objects(space, kwargs):
    """And so are log-probabilities, entropies and their gradients."""
    policy = make(space, **kwargs).policy
    states = th.randn(5, 4)
    known, own = ActionsAndValues(policy)(states)[0], policy.get_distribution(states)
    assert Actions(policy).is_pure
    actions = own.sample()
    if isinstance(own, StateDependentNoiseDistribution) and own.bijector is not None:
        assert own.entropy() is known.entropy() is action_parameters(own).entropy() is None
    else:
        assert th.allclose(known.entropy(), own.entropy(), atol=1e-5)
    for mine in (known, action_parameters(own)):
        assert th.allclose(mine.log_prob(actions), own.log_prob(actions), atol=1e-4)
        assert mine.kl(known).abs().max() < 1e-6
    trained = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]
    trained += [policy.log_std] if hasattr(policy, "log_std") else []
    gradients = (th.autograd.grad(x.log_prob(actions).sum(), trained, retain_graph=True) for x in (known, own))
    for mine, torchs in zip(*gradients, strict=True):
        assert th.allclose(mine, torchs, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_action_parameters_equal_sb3s_divergence(space):
    models = [make(space, seed=seed, policy_kwargs={"ortho_init": False}) for seed in (0, 1)]
    observations = th.randn(20, 4)
    distributions = [model.policy.get_distribution(observations) for model in models]
    expected = kl_divergence(*distributions)
    expected = expected.sum(-1) if expected.dim() > 1 else expected
    assert expected.max() > 0
    p, q = map(action_parameters, distributions)
    assert th.allclose(p.kl(q), expected, atol=1e-6)


def test_an_unknown_distribution_is_named():
    with pytest.raises(TypeError, match="No KL divergence is known for object"):
        action_parameters(object())
