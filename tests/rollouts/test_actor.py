"""The actor alone draws the policy's actions."""

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_trl import TRPL, FixPO
from sb3_trl.rollouts.actor import LeanActor

from .cases import N_ENVS, make


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Softplus])
def test_activations_without_state_go_the_short_way(activation):
    """And those with state, or with hooks, do not."""
    model = make(FixPO, "box", policy_kwargs={"activation_fn": activation, "log_std_init": -40})
    observations = np.random.default_rng(0).normal(size=(N_ENVS, 4)).astype(np.float32)
    actor = LeanActor(model.policy, 2, N_ENVS)
    assert actor._is_bare
    expected, _ = model.policy.predict(observations, deterministic=True)
    assert np.allclose(np.clip(actor.act(observations, 1), -0.3, 0.4), expected, atol=1e-6)
    model.policy.mlp_extractor.policy_net[1].register_forward_hook(lambda *_: None)
    assert not LeanActor(model.policy, 2, N_ENVS)._is_bare
    assert not LeanActor(make(FixPO, "box", policy_kwargs={"activation_fn": nn.PReLU}).policy, 2, N_ENVS)._is_bare


def frequencies(model: FixPO, n: int) -> np.ndarray:
    """How often each action is drawn in one state, the actions' frequencies in columns."""
    model.policy.action_net.weight.data.normal_(std=0.3)
    model.policy.action_net.bias.data.normal_()
    actor = LeanActor(model.policy, n, 1)
    return np.concatenate([actor.act(np.ones((1, 4), np.float32), step).reshape(1, -1) for step in range(n)])


@pytest.mark.parametrize("space", ["discrete", "multi_discrete", "multi_binary"])
def test_actions_follow_the_policy(space):
    """Frequencies of 8000 draws against the distribution's probabilities, within 5 standard errors."""
    n = 8_000
    model = make(FixPO, space)
    drawn = frequencies(model, n)
    distribution = model.policy.get_distribution(th.ones(1, 4)).distribution
    factors = distribution if isinstance(distribution, list) else [distribution]
    probabilities = [f.probs[0].detach().numpy() for f in factors]
    if space == "multi_binary":
        probabilities = [np.array([1 - p, p]) for p in probabilities[0]]
    for column, probability in zip(drawn.T, probabilities, strict=True):
        for action, p in enumerate(probability):
            assert abs((column == action).mean() - p) < 5 * np.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("kwargs", [{}, {"contextual_std": True}, {"covariance": "full"}])
def test_gaussian_actions_follow_the_policy(kwargs):
    n = 8_000
    model = make(TRPL, "box", policy_kwargs=kwargs)
    actor = LeanActor(model.policy, n, 1)
    drawn = np.concatenate([actor.act(np.ones((1, 4), np.float32), step) for step in range(n)])
    gaussian = model.policy.gaussian(th.ones(1, 4))
    std = gaussian.covariance[..., range(2), range(2)].sqrt().detach().numpy().reshape(-1)
    assert np.abs(drawn.mean(0) - gaussian.mean.detach().numpy()[0]).max() < 5 * std.max() / np.sqrt(n)
    assert np.allclose(drawn.std(0), std, rtol=5 / np.sqrt(2 * n))


def test_a_hook_keeps_what_a_layer_gave_it():
    """Activations overwrite what no hook has seen, and nothing else."""
    model, kept = make(FixPO, "box"), []
    model.policy.mlp_extractor.policy_net[0].register_forward_hook(lambda _, __, output: kept.append(output))
    observations = np.random.default_rng(0).normal(size=(N_ENVS, 4)).astype(np.float32)
    original = observations.copy()
    LeanActor(model.policy, 2, N_ENVS).act(observations, 0)
    expected = nn.functional.linear(th.from_numpy(original), *model.policy.mlp_extractor.policy_net[0].parameters())
    assert th.allclose(kept[0], expected, atol=1e-6)
    assert np.array_equal(observations, original)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_mean_and_scale_are_one_layer_unless_they_are_not_plain(covariance):
    model, kept = make(TRPL, "box", policy_kwargs={"contextual_std": True, "covariance": covariance}), []
    model.policy.scale_net.linear.weight.data.normal_()
    observations = np.random.default_rng(0).normal(size=(N_ENVS, 4)).astype(np.float32)
    th.manual_seed(0)
    actor = LeanActor(model.policy, 2, N_ENVS)
    assert actor._is_bare
    model.policy.scale_net.register_forward_hook(lambda _, __, output: kept.append(output))
    th.manual_seed(0)
    hooked = LeanActor(model.policy, 2, N_ENVS)
    assert np.allclose(hooked.act(observations, 0), actor.act(observations, 0), atol=1e-5)
    assert len(kept) == 1
    model.policy.action_net = nn.Sequential(model.policy.action_net)
    th.manual_seed(0)
    other = LeanActor(model.policy, 2, N_ENVS)
    assert np.allclose(other.act(observations, 0), actor.act(observations, 0), atol=1e-5)
