"""Networks of a user's own: what SB3's PPO builds and trains of the same arguments, the algorithms build and train."""

from functools import cache

import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from support import ALGORITHMS, FixPO, LeanPPO, LinearExtractor, collect, parameters, small, vec_env
from torch import nn

from sb3_trl import LeanTRPO, TRPLPolicy
from sb3_trl.algorithms.projecting import ProjectingAlgorithm
from sb3_trl.policies.action_parameters import ActionsAndValues
from sb3_trl.policies.actor_critic import SingleOptimizerPolicy

every_algorithm = pytest.mark.parametrize("cls", [*ALGORITHMS, LeanTRPO])


class OwnExtractor(nn.Module):
    """Actor and critic with a layer of their own, which SB3's ``MlpExtractor`` does not have."""

    latent_dim_pi, latent_dim_vf = 5, 6

    def __init__(self, size: int) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(size, 5), nn.LayerNorm(5), nn.ReLU())
        self.critic = nn.Linear(size, 6)

    def forward(self, features):
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features):
        return self.actor(features)

    def forward_critic(self, features):
        return self.critic(features).tanh()


class WithOwnExtractor:
    """Mixed into a policy: builds it."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = OwnExtractor(self.features_dim)


class Doubling(MlpExtractor):
    """SB3's, with a forward pass of its own for the actor."""

    def forward_actor(self, features):
        return 2 * super().forward_actor(features)


class WithDoubling:
    """Mixed into a policy: builds it."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = Doubling(self.features_dim, self.net_arch, self.activation_fn, self.device)


class Nothing:
    """Mixed into a policy: changes nothing."""


def own_policy(cls: type, mixin: type) -> type:
    """Return a policy of one's own, of the kind that the algorithm needs."""
    base = TRPLPolicy if issubclass(cls.policy_aliases["MlpPolicy"], TRPLPolicy) else ActorCriticPolicy
    return type("OwnPolicy", (mixin, base), {})


def sizes(model) -> dict[str, list[tuple]]:
    """Return the shapes of the hidden layers."""
    networks = ("mlp_extractor", "features_extractor", "pi_features_extractor", "vf_features_extractor", "value_net")
    return {name: [tuple(p.shape) for p in getattr(model.policy, name).parameters()] for name in networks}


ARCHITECTURES = [
    {"net_arch": [4]},
    {"net_arch": [6, 4]},
    {"net_arch": []},
    {"net_arch": {"pi": [4], "vf": [5, 6]}},
    {"net_arch": {"pi": [], "vf": [5]}},
    {"net_arch": {"pi": [4]}},
    {"net_arch": {"vf": [4]}},
    {"net_arch": {"pi": [], "vf": []}},
    {"net_arch": {}},
    {"net_arch": [{"pi": [4], "vf": [4]}]},
    {"net_arch": None},
    {"activation_fn": nn.ReLU},
    {"activation_fn": nn.GELU, "ortho_init": False},
    {"features_extractor_class": LinearExtractor},
    {"features_extractor_class": LinearExtractor, "features_extractor_kwargs": {"batch_norm": True}},
    {"features_extractor_class": LinearExtractor, "share_features_extractor": False},
    {"features_extractor_class": LinearExtractor, "net_arch": []},
    {"optimizer_class": th.optim.SGD},
    {"optimizer_class": th.optim.RMSprop, "optimizer_kwargs": {"alpha": 0.9}},
    {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}},
    {"optimizer_kwargs": {"betas": (0.5, 0.9)}},
    {"optimizer_kwargs": {"amsgrad": True, "maximize": False}},
    {"normalize_images": False},
    {"net_arch": 3},
    {"net_arch": [4, "x"]},
    {"net_arch": {"pi": [4.5]}},
    {"activation_fn": 3},
    {"optimizer_kwargs": {"nonsense": 1}},
    {"features_extractor_kwargs": {"nonsense": 1}},
    {"features_extractor_class": 3},
]


def outcome(cls: type, policy_kwargs: dict):
    """Return the kind of an error, or the networks and their optimiser's settings after training moved them."""
    explicit = dict(policy_kwargs)
    if "features_extractor_class" in explicit and cls is not PPO and "share" not in str(explicit):
        # TRPL's policies do not share by default, as their documentation says.
        explicit["share_features_extractor"] = cls.policy_aliases["MlpPolicy"] is ActorCriticPolicy
    try:
        model = small(cls, vec_env(2), policy_kwargs=explicit, learning_rate=1e-2)
        before = parameters(model)
        model.learn(16)
    except Exception as error:
        return type(error)
    after = parameters(model)
    still = {key for key, value in before.items() if th.equal(value, after[key]) and value.numel()}
    assert not {key for key in still if key.startswith(("mlp_extractor", "action_net", "value_net"))}
    group = {
        key: value for key, value in model.policy.optimizer.param_groups[0].items() if key not in ("params", "fused")
    }
    if issubclass(cls.policy_aliases["MlpPolicy"], TRPLPolicy):
        return sizes(model)["mlp_extractor"], sizes(model)["value_net"], group
    return sizes(model), group


@cache
def outcome_of_ppo(number: int):
    return outcome(PPO, ARCHITECTURES[number])


@every_algorithm
@pytest.mark.parametrize("number", range(len(ARCHITECTURES)), ids=lambda number: str(ARCHITECTURES[number]))
def test_arguments_of_the_policy(cls, number):
    ours, expected = outcome(cls, ARCHITECTURES[number]), outcome_of_ppo(number)
    if issubclass(cls.policy_aliases["MlpPolicy"], TRPLPolicy) and isinstance(expected, tuple):
        networks, group = expected
        expected = networks["mlp_extractor"], networks["value_net"], group
    assert ours == expected


@every_algorithm
@pytest.mark.parametrize("mixin", [WithOwnExtractor, WithDoubling])
def test_a_policy_with_networks_of_its_own(cls, mixin, tmp_path):
    """It acts, learns and predicts with its own forward pass, and is saved and loaded."""
    model = small(cls, vec_env(2), own_policy(cls, mixin), learning_rate=1e-2)
    before = parameters(model)
    model.learn(32)
    after = parameters(model)
    assert not [key for key, x in before.items() if th.equal(x, after[key])]
    observation = np.float32([0.5, -0.5, 0.1])
    tensor = th.as_tensor(observation)[None]
    latent = model.policy.mlp_extractor.forward_actor(tensor)
    expected = model.policy.action_net(latent)[0].detach().numpy().clip(-1, 1)
    np.testing.assert_allclose(model.predict(observation, deterministic=True)[0], expected, rtol=1e-5)
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=vec_env(2), device="cpu")
    np.testing.assert_array_equal(*(m.predict(observation, deterministic=True)[0] for m in (model, loaded)))
    loaded.learn(16)


#: Methods that a policy may override. TRPL, FixPO and PAPI need more of the policy in an update than
#: ``evaluate_actions`` returns, the distribution, and do not call it.
METHODS = ["forward", "predict_values", "extract_features", "_get_action_dist_from_latent", "get_distribution"]
OVERRIDDEN = [(cls, method) for cls in (*ALGORITHMS, LeanTRPO) for method in METHODS]


@pytest.mark.parametrize(("cls", "method"), [*OVERRIDDEN, (LeanPPO, "evaluate_actions")])
def test_what_a_policy_overrides_is_called(cls, method):
    """While a rollout is collected as often as SB3 calls it, in updates and predictions where SB3 calls it."""
    calls: list[str] = []

    def make(algorithm):
        def overridden(self, *args, **kwargs):
            calls.append(method)
            return getattr(super(policy, self), method)(*args, **kwargs)

        policy = type("OwnPolicy", (own_policy(cls, Nothing),), {method: overridden})
        if not issubclass(algorithm, ProjectingAlgorithm) and issubclass(policy, TRPLPolicy):
            policy = type("OwnPolicy", (SingleOptimizerPolicy,), {method: overridden})
        return small(algorithm, vec_env(2), policy)

    counts = []
    for each in (cls, TRPO if cls is LeanTRPO else PPO):
        model = make(each)
        _, callback = model._setup_learn(16, None)
        count = []
        for step in (
            lambda model=model, callback=callback: model.collect_rollouts(model.env, callback, model.rollout_buffer, 8),
            model.train,
            lambda model=model: model.predict(np.zeros(3, np.float32)),
        ):
            calls.clear()
            step()
            count.append(len(calls))
        counts.append(count)
    ours, expected = counts
    assert ours[0] == expected[0]
    assert all(n > 0 for n, n_expected in zip(ours, expected, strict=True) if n_expected > 0)


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_the_policy_that_is_updated_is_the_one_that_acted(cls):
    """Without a step, no ratio and no divergence moves, whatever ``extract_features`` does with the observations."""

    def extract_features(self, obs, *args):
        features = super(policy, self).extract_features(obs, *args)
        return tuple(3 * x for x in features) if isinstance(features, tuple) else 3 * features

    policy = type("OwnPolicy", (own_policy(cls, Nothing),), {"extract_features": extract_features})
    model = small(cls, vec_env(2), policy)
    with th.no_grad():
        model.policy.action_net.weight.normal_()
    rollout = collect(model, 16)
    with th.no_grad():
        if isinstance(model, ProjectingAlgorithm):
            old, values = model._predictions(rollout), model.policy.predict_values(rollout.observations)
        elif isinstance(model, FixPO):
            old, values = (
                model._action_parameters(rollout.observations),
                ActionsAndValues(model.policy)(rollout.observations)[1],
            )
        else:
            old, values = ActionsAndValues(model.policy)(rollout.observations)
    th.testing.assert_close(old.log_prob(rollout.actions), rollout.old_log_prob, rtol=1e-4, atol=1e-5)
    th.testing.assert_close(values.flatten(), rollout.old_values, rtol=1e-4, atol=1e-5)


@every_algorithm
def test_a_policy_may_take_arguments_out_of_its_keywords(cls):
    class Wide(own_policy(cls, Nothing)):
        def __init__(self, *args, **kwargs):
            self.width = kwargs.pop("width", 8)
            super().__init__(*args, **kwargs)

    assert small(cls, policy=Wide, policy_kwargs={"width": 5}).policy.width == 5


@every_algorithm
def test_the_policy_may_be_a_class(cls):
    alias = small(cls).policy_class
    assert type(small(cls, policy=alias).policy) is alias
    with pytest.raises(ValueError, match="Policy nonsense unknown"):
        small(cls, policy="nonsense")
