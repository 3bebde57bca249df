"""``model.predict(..., deterministic=True)`` takes a shorter way than ``model.policy.predict``, to the same bits."""

import numpy as np
import pytest
import torch as th
from support import ACTION_SPACES, ALGORITHMS, ActionEnv, FixPO, LeanPPO, small
from torch import nn

from sb3_trl import PAPI, TRPL, LeanTRPO
from sb3_trl.policies.prediction import likeliest_actions

every_algorithm = pytest.mark.parametrize("cls", [*ALGORITHMS, LeanTRPO])
CASES = [(cls, space) for cls in (*ALGORITHMS, LeanTRPO) for space in ACTION_SPACES if space == "box" or cls != PAPI]


def model_of(cls, space: str = "box", **kwargs):
    """Return a model whose actions depend on the observation, some of them outside their bounds."""
    model = small(cls, ActionEnv(ACTION_SPACES[space]), **kwargs)
    with th.no_grad():
        for parameter in model.policy.action_net.parameters():
            parameter.normal_(0.0, 1.0)
    return model


def both(model, observation) -> list:
    """Return what the model and its policy make of an observation: actions, or the kind of an error."""
    results = []
    for who in (model.policy, model):
        try:
            results.append(who.predict(observation, deterministic=True)[0])
        except Exception as error:
            results.append(type(error))
    return results


def assert_same(model, observation) -> None:
    expected, found = both(model, observation)
    assert type(found) is type(expected)
    np.testing.assert_array_equal(found, expected, strict=isinstance(expected, np.ndarray))


@pytest.mark.parametrize(("cls", "space"), CASES)
@pytest.mark.parametrize("shape", [(4,), (1, 4), (37, 4), (0, 4)], ids=str)
def test_the_same_to_the_bit(cls, space, shape):
    model, generator = model_of(cls, space), np.random.default_rng(0)
    is_short = space in ("box", "discrete") or cls is TRPL
    for dtype in (np.float32, np.float64, np.int64, np.float16):
        observation = generator.normal(0.0, 3.0, shape).astype(dtype)
        kept = observation.copy()
        assert (likeliest_actions(model.policy, observation) is not None) == (is_short and shape != (0, 4))
        assert_same(model, observation)
        np.testing.assert_array_equal(observation, kept)
    assert_same(model, np.asfortranarray(generator.normal(size=(3, 4)))[::-1])


@pytest.mark.parametrize(("cls", "space"), CASES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_what_is_not_finite(cls, space, value):
    """Refused where SB3 refuses it."""
    model = model_of(cls, space)
    assert_same(model, np.full(4, value, np.float32))


@pytest.mark.parametrize("cls", [FixPO, LeanPPO])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -200.0])
def test_deviations_that_are_none(cls, value):
    model = model_of(cls)
    with th.no_grad():
        model.policy.log_std[0] = value
    assert_same(model, np.zeros(4, np.float32))


@every_algorithm
def test_equally_likely_actions(cls):
    """Equal after rounding, that is: the first of them."""
    if cls is PAPI:
        pytest.skip("for actions in a Box")
    model = model_of(cls, "discrete")
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.copy_(th.tensor([0.0, 2e-8, 0.0]))
    assert_same(model, np.zeros(4, np.float32))


@every_algorithm
def test_a_policy_that_changes(cls):
    """In place, by ``data``, by another layer, by a hook: what acts is the policy of now, in evaluation mode."""
    model, observation = model_of(cls), np.ones(4, np.float32)
    layers = model.policy.mlp_extractor.policy_net
    seen = [model.predict(observation, deterministic=True)[0]]

    def look() -> None:
        model.policy.set_training_mode(True)
        seen.append(model.predict(observation, deterministic=True)[0])
        assert not any(module.training for module in model.policy.modules())
        assert_same(model, observation)
        assert not np.array_equal(*seen[-2:])

    with th.no_grad():
        layers[0].weight.mul_(0.1)
    look()
    layers[0].weight.data = -layers[0].weight.data
    look()
    layers[1] = nn.ReLU()
    look()
    layers[0].register_forward_hook(lambda module, inputs, output: output + 1)
    look()
    model.policy.pi_features_extractor.register_forward_hook(lambda module, inputs, output: 2 * output)
    look()
    model.policy.features_extractor = model.policy.pi_features_extractor = nn.Sequential(nn.Flatten(), nn.Tanh())
    look()


@every_algorithm
@pytest.mark.parametrize("name", ["predict", "_predict", "get_distribution", "obs_to_tensor"])
def test_a_method_of_the_policy_that_is_replaced(cls, name):
    """By a mock, a counter, a correction: it is called."""
    model, calls = model_of(cls), []
    original = getattr(model.policy, name)

    def counted(*args, **kwargs):
        calls.append(name)
        return original(*args, **kwargs)

    setattr(model.policy, name, counted)
    model.predict(np.zeros(4, np.float32), deterministic=True)
    assert calls


@every_algorithm
def test_a_policy_of_somebody_else(cls):
    own = type(model_of(cls).policy)

    class Opposite(own):
        def _predict(self, observation, deterministic=False):
            return -super()._predict(observation, deterministic)

    model = model_of(cls, policy=Opposite)
    assert_same(model, np.ones(4, np.float32))
    assert likeliest_actions(model.policy, np.ones(4, np.float32)) is None
