"""Policies: what is built, what is optimised, what is shared, and every way to ask them."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from support import SHARED, LinearExtractor, PointEnv, all_equal, collect, make_model, parameters, vec_env

from sb3_trl import TRPL, ProjectedGaussianDistribution, TRPLPolicy
from sb3_trl.policies.actor_critic import CnnPolicy, MlpPolicy, MultiInputPolicy, SingleOptimizerPolicy
from sb3_trl.projections import TrustRegionLayer

OBSERVATIONS = spaces.Box(-1.0, 1.0, (5,), np.float32)
ACTIONS = spaces.Box(-1.0, 1.0, (3,), np.float32)
FULL_CONTEXTUAL = {"covariance": "full", "contextual_std": True}

#: Policy alias, kind of observation, policy_kwargs.
POLICIES = [
    ("MlpPolicy", "box", {}),
    ("MlpPolicy", "box", {"contextual_std": True}),
    ("MlpPolicy", "box", {"covariance": "full"}),
    ("MlpPolicy", "box", FULL_CONTEXTUAL),
    ("MlpPolicy", "box", {"features_extractor_class": LinearExtractor}),
    ("MlpPolicy", "box", {"net_arch": []}),
    ("MlpPolicy", "discrete", {}),
    ("MultiInputPolicy", "dict", {}),
    ("CnnPolicy", "image", {"features_extractor_kwargs": {"features_dim": 16}}),
]


def make_policy(**kwargs) -> TRPLPolicy:
    return TRPLPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, **kwargs)


def optimised(policy: TRPLPolicy) -> list[list[th.nn.Parameter]]:
    optimizers = [policy.optimizer] if policy.critic_optimizer is None else [policy.optimizer, policy.critic_optimizer]
    return [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]


def test_aliases():
    assert TRPL.policy_aliases == {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    assert MlpPolicy is TRPLPolicy
    for alias, observation, extractor in [
        ("MlpPolicy", "box", FlattenExtractor),
        ("CnnPolicy", "image", NatureCNN),
        ("MultiInputPolicy", "dict", CombinedExtractor),
    ]:
        policy = make_model(PointEnv(observation=observation), alias).policy
        assert isinstance(policy, TRPLPolicy)
        assert type(policy.features_extractor) is extractor


@pytest.mark.parametrize(("alias", "observation", "kwargs"), POLICIES)
def test_two_optimisers_hold_every_parameter_once(alias, observation, kwargs):
    policy = make_model(PointEnv(observation=observation), alias, policy_kwargs=kwargs).policy
    actor, critic = optimised(policy)
    held = [id(p) for p in (*actor, *critic)]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in policy.parameters()}
    assert not policy.shares_parameters
    # What the actor's optimiser holds moves the policy alone, what the critic's holds the value alone.
    assert any(p is policy.value_net.weight for p in critic)
    assert any(p is policy.action_net.weight for p in actor)
    assert {id(p) for p in actor} == {id(p) for p in policy.actor_parameters()}
    assert {id(p) for p in critic} == {id(p) for p in policy.critic_parameters()}


@pytest.mark.parametrize("kwargs", [{}, FULL_CONTEXTUAL])
def test_one_optimiser_where_parameters_are_shared(kwargs):
    policy = make_policy(**SHARED, **kwargs)
    assert policy.shares_parameters
    (held,) = optimised(policy)
    assert sorted(map(id, held)) == sorted(map(id, policy.parameters()))
    shared = {id(p) for p in policy.features_extractor.parameters()}
    assert {id(p) for p in policy.actor_parameters()} & {id(p) for p in policy.critic_parameters()} == shared


def test_nothing_is_shared_where_the_extractor_has_no_parameters():
    assert not make_policy(share_features_extractor=True).shares_parameters


def test_building_leaves_batch_statistics_alone():
    policy = make_policy(features_extractor_class=LinearExtractor, features_extractor_kwargs={"batch_norm": True})
    norm = policy.features_extractor.layers[-1]
    assert norm.num_batches_tracked == 0
    assert norm.training
    assert len(optimised(policy)) == 2


def test_optimiser_arguments():
    group = make_policy().optimizer.param_groups[0]
    assert (group["eps"], group["lr"]) == (1e-5, 1e-3)
    policy = make_policy(optimizer_class=th.optim.SGD, optimizer_kwargs={"momentum": 0.5})
    assert isinstance(policy.critic_optimizer, th.optim.SGD)
    assert policy.optimizer.param_groups[0]["momentum"] == 0.5


def singular_values(layer: th.nn.Linear) -> th.Tensor:
    return th.linalg.svdvals(layer.weight.detach())


def test_orthogonal_initialisation():
    policy = make_policy(contextual_std=True, features_extractor_class=LinearExtractor)
    hidden = [policy.pi_features_extractor.layers[1], policy.vf_features_extractor.layers[1]]
    hidden += [policy.mlp_extractor.policy_net[i] for i in (0, 2)] + [policy.mlp_extractor.value_net[i] for i in (0, 2)]
    gains = [(layer, 2**0.5) for layer in hidden]
    gains += [(policy.action_net, 0.01), (policy.scale_net.linear, 0.01), (policy.value_net, 1.0)]
    for layer, gain in gains:
        values = singular_values(layer)
        th.testing.assert_close(values, th.full_like(values, gain))
        assert (layer.bias == 0).all()


def test_initialisation_of_torch_where_orthogonal_is_off():
    values = singular_values(make_policy(ortho_init=False).mlp_extractor.policy_net[0])
    assert values.max() - values.min() > 0.1


@pytest.mark.parametrize("covariance", ["diag", "full"])
@pytest.mark.parametrize("init_std", [0.135, 1.0, 3.0])
def test_init_std(covariance, init_std):
    observations = th.randn(50, 5)
    fixed = make_policy(covariance=covariance, init_std=init_std).gaussian(observations)
    assert not fixed.is_contextual
    expected = th.full((3,), init_std)
    assert th.equal(fixed.scale, th.diag(expected) if covariance == "full" else expected)
    contextual = make_policy(covariance=covariance, init_std=init_std, contextual_std=True).gaussian(observations)
    assert contextual.is_contextual
    std = contextual.scale.diagonal(dim1=-2, dim2=-1) if covariance == "full" else contextual.scale
    assert std.shape == (50, 3)
    assert ((std / init_std - 1).abs() < 0.1).all()
    assert std.std() > 0


@pytest.mark.parametrize("covariance", ["diag", "full"])
@pytest.mark.parametrize("kwargs", [{}, SHARED], ids=["separate", "shared"])
def test_every_way_to_ask_gives_the_same_answer(covariance, kwargs):
    policy = make_policy(covariance=covariance, contextual_std=True, **kwargs)
    observations = th.randn(20, 5)
    gaussian, values = policy.predicted_and_values(observations)
    distribution = policy.get_distribution(observations)
    assert isinstance(distribution, ProjectedGaussianDistribution)
    actions, forward_values, log_prob = policy(observations)
    evaluated = policy.evaluate_actions(observations, actions)
    for means in (gaussian.mean, policy.gaussian(observations).mean, policy(observations, deterministic=True)[0]):
        th.testing.assert_close(means, distribution.mode())
    for v in (values, forward_values, evaluated[0]):
        th.testing.assert_close(v, policy.predict_values(observations))
    th.testing.assert_close(distribution.log_prob(actions), log_prob)
    th.testing.assert_close(evaluated[1], log_prob)
    th.testing.assert_close(evaluated[2], gaussian.entropy())


def test_distributions_do_not_share_their_parameters():
    policy = make_policy()
    first = policy.get_distribution(th.zeros(4, 5))
    mean = first.mode().clone()
    policy.get_distribution(th.ones(4, 5))
    assert th.equal(first.mode(), mean)


def test_actions_have_the_shape_of_the_space():
    policy = TRPLPolicy(OBSERVATIONS, spaces.Box(-1.0, 1.0, (2, 2), np.float32), lambda _: 1e-3)
    actions, _, log_prob = policy(th.zeros(6, 5))
    assert actions.shape == (6, 2, 2)
    assert log_prob.shape == (6,)
    assert policy.predict(np.zeros(5, np.float32))[0].shape == (2, 2)


@pytest.mark.parametrize(("alias", "observation", "kwargs"), POLICIES)
def test_save_and_load(tmp_path, alias, observation, kwargs):
    env = PointEnv(observation=observation)
    policy = make_model(env, alias, policy_kwargs=kwargs).policy
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    policy.save(tmp_path / "policy")
    loaded = type(policy).load(tmp_path / "policy", device="cpu")
    assert type(loaded) is type(policy)
    assert all_equal(policy.state_dict(), loaded.state_dict())
    assert len(optimised(loaded)) == len(optimised(policy))
    batch = policy.obs_to_tensor(env.reset(seed=0)[0])[0]
    assert th.equal(policy.gaussian(batch).mean, loaded.gaussian(batch).mean)
    assert th.equal(policy.gaussian(batch).scale, loaded.gaussian(batch).scale)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_a_scale_that_was_set_survives_saving_exactly(tmp_path, covariance):
    policy = make_policy(covariance=covariance, init_std=0.5)
    scale = th.exp(2 * th.randn(3)) if covariance == "diag" else th.randn(3, 3).tril(-1) + th.diag(th.rand(3) + 0.1)
    policy.set_scale(scale)
    policy.save(tmp_path / "policy")
    loaded = TRPLPolicy.load(tmp_path / "policy", device="cpu")
    for p in (policy, loaded):
        assert th.equal(p.gaussian(th.zeros(2, 5)).scale, scale)


@pytest.mark.parametrize("contextual", [False, True])
def test_acting_never_projects(monkeypatch, contextual):
    def refuse(*_, **__):
        raise AssertionError("projected")

    monkeypatch.setattr(TrustRegionLayer, "forward", refuse)
    model = make_model(vec_env(2), policy_kwargs={"contextual_std": contextual})
    model.predict(np.zeros(3, np.float32))
    model.predict(np.zeros((5, 3), np.float32), deterministic=True)
    rollout = collect(model)
    with pytest.raises(AssertionError, match="projected"):
        model.train()
    # The rollout was made by the network's own Gaussian.
    acting = model.policy.get_distribution(rollout.observations)
    th.testing.assert_close(acting.log_prob(rollout.actions), rollout.old_log_prob, rtol=1e-4, atol=1e-5)


def test_deterministic_prediction_is_the_mean():
    model = make_model()
    observation = np.linspace(-1, 1, 3, dtype=np.float32)
    with th.no_grad():
        model.policy.action_net.bias.fill_(0.3)
    mean = model.policy.gaussian(th.as_tensor(observation)[None]).mean[0].detach().numpy()
    np.testing.assert_allclose(model.predict(observation, deterministic=True)[0], mean, rtol=1e-5)
    assert not np.allclose(model.predict(observation)[0], mean)


def test_predictions_are_clipped_to_the_action_space():
    model = make_model(policy_kwargs={"init_std": 100.0})
    actions = np.array([model.predict(np.zeros(3, np.float32))[0] for _ in range(20)])
    assert (np.abs(actions) <= 1).all()
    assert (np.abs(actions) == 1).any()


def test_set_scale_changes_nothing_else():
    model = make_model()
    before = parameters(model)
    model.policy.set_scale(th.tensor([0.1, 0.2, 0.3]))
    changed = [key for key, value in parameters(model).items() if not th.equal(value, before[key])]
    assert changed == ["scale_net.raw"]


def test_sde_is_not_available():
    with pytest.raises(ValueError, match="use_sde is not available"):
        make_policy(use_sde=True)


def test_ppo_trains_a_critic_with_a_policy_of_one_optimizer():
    model = PPO(SingleOptimizerPolicy, "Pendulum-v1", n_steps=64, policy_kwargs={"contextual_std": True}, seed=0)
    before = {name: parameter.clone() for name, parameter in model.policy.named_parameters()}
    model.learn(64)
    changed = {name for name, parameter in model.policy.named_parameters() if not parameter.equal(before[name])}
    assert changed == before.keys()
