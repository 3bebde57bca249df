"""What users change while training runs: the policy, what is trained, scalars, and the model as a whole."""

import copy
import io
import pickle
import warnings

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EveryNTimesteps
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from support import ACTION_SPACES, SHARED, ActionEnv, LinearExtractor, PointEnv, all_equal, parameters, vec_env
from torch import nn

from sb3_trl import PAPI, TRPL, FixPO, LeanPPO, LeanTRPO
from sb3_trl.policies.actor_critic import SingleOptimizerPolicy
from sb3_trl.rollouts.policy_watch import PolicyWatch, leaves_policy_alone
from sb3_trl.steps.compilation import Compiled
from sb3_trl.study import SeedBatch

ALGORITHMS = [TRPL, FixPO, PAPI, LeanPPO]
SMALL = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}


def make(cls, env=None, policy="MlpPolicy", compile=False, **kwargs):
    options = SMALL | kwargs
    options["policy_kwargs"] = {"net_arch": [8]} | options.get("policy_kwargs", {})
    if cls is LeanTRPO:
        options.pop("n_epochs")
    else:
        options["compile"] = compile
    return cls(policy, vec_env(2) if env is None else env, **options)


class Calls(BaseCallback):
    """Calls a function of the model at the start of every rollout, or after every step of one.

    :param function: Called with the model and how often it has been called before.
    :param when: ``"rollout"`` or ``"step"``.
    """

    def __init__(self, function, when: str = "rollout") -> None:
        super().__init__()
        self.function, self.when, self.n = function, when, 0

    def _call(self, when: str) -> None:
        if when == self.when:
            self.function(self.model, self.n)
            self.n += 1

    def _on_rollout_start(self) -> None:
        self._call("rollout")

    def _on_step(self) -> bool:
        self._call("step")
        return True


# --- the policy ---


def scale_of(policy) -> th.Tensor:
    if hasattr(policy, "log_std"):
        return policy.log_std
    return (
        policy.scale_net.raw
        if hasattr(policy, "scale_net") and policy.scale_net.linear is None
        else policy.action_net.bias
    )


def anneal(model, n: int) -> None:
    """What people write to anneal a standard deviation; here it jumps."""
    scale_of(model.policy).data.fill_(-2.0 if n % 2 else 0.5)


def disturb(model, n: int) -> None:
    """All parameters, in place, as after an optimiser's step."""
    with th.no_grad():
        for p in model.policy.parameters():
            p.add_(0.03 * th.randn_like(p))


def exchange(model, n: int) -> None:
    """The tensors themselves, as ``vector_to_parameters`` does."""
    vector = nn.utils.parameters_to_vector(p.float() for p in model.policy.parameters())
    nn.utils.vector_to_parameters(vector + 0.01, model.policy.parameters())


def replace(model, n: int) -> None:
    """A layer."""
    head = model.policy.action_net
    model.policy.action_net = nn.Linear(head.in_features, head.out_features)


def load(model, n: int) -> None:
    """The weights of another, as in population-based training."""
    model.policy.load_state_dict({key: 1.02 * value + 0.01 for key, value in model.policy.state_dict().items()})


CHANGES = [anneal, disturb, exchange, replace, load]


class Acting(Calls):
    """Asks the policy that has acted for its log-probabilities and values, before it is changed."""

    def __init__(self, change, when: str) -> None:
        super().__init__(change, when)
        self.said: list[list[np.ndarray]] = []
        self.differences: list[np.ndarray] = []

    def _on_step(self) -> bool:
        policy, observations = self.model.policy, self.model._last_obs
        with th.no_grad():
            tensor, _ = policy.obs_to_tensor(observations)
            distribution, values = policy.get_distribution(tensor), policy.predict_values(tensor)
            log_probs = distribution.log_prob(th.as_tensor(self.locals["actions"]))
            if hasattr(policy, "log_std") or hasattr(policy, "scale_net"):
                mode, std = distribution.mode().numpy(), distribution.distribution.stddev.numpy()
                self.differences.append((self.locals["actions"].reshape(mode.shape) - mode) / std)
        self.said[-1].append(np.stack([log_probs.numpy(), values.flatten().numpy()]))
        return super()._on_step()

    def _on_rollout_start(self) -> None:
        self.said.append([])
        super()._on_rollout_start()

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        expected = np.stack(self.said[-1])
        np.testing.assert_allclose(buffer.log_probs, expected[:, 0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(buffer.values, expected[:, 1], rtol=1e-5, atol=1e-5)


POLICIES = [
    (TRPL, "box", {}),
    (TRPL, "box", {"policy_kwargs": {"contextual_std": True}}),
    (TRPL, "box", {"policy_kwargs": {"covariance": "full"}}),
    (FixPO, "box", {}),
    (FixPO, "discrete", {}),
    (PAPI, "box", {}),
    (LeanPPO, "box", {}),
    (LeanPPO, "multi_discrete", {}),
    (LeanPPO, "multi_binary", {}),
    (LeanPPO, "box", {"policy": SingleOptimizerPolicy, "policy_kwargs": {"contextual_std": True}}),
    (LeanTRPO, "box", {}),
]


@pytest.mark.parametrize("when", ["rollout", "step"])
@pytest.mark.parametrize(("cls", "space", "kwargs"), POLICIES)
def test_actions_and_what_is_stored_are_those_of_the_policy_as_it_is(cls, space, kwargs, when):
    """However a callback changes it; LeanTRPO and all others, at the start of a rollout and in the middle."""
    for change in CHANGES:
        model = make(cls, vec_env(2, ActionEnv, action_space=ACTION_SPACES[space]), **kwargs)
        acting = Acting(lambda model, n, change=change: n % 5 == 3 and change(model, n), when)
        if when == "rollout":
            acting.function = change
        _, callback = model._setup_learn(10_000, acting)
        callback.on_training_start({}, {})
        for _ in range(2):
            assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        if acting.differences:
            assert np.square(np.stack(acting.differences)).mean() == pytest.approx(1, abs=0.4), change


def test_nothing_is_computed_twice_where_nothing_changes():
    """A policy that is changed by nobody is evaluated in one piece, under callbacks that are known and others."""
    lengths = []
    for callback in (None, Calls(lambda *_: None, "step")):
        model = make(TRPL)
        model.policy.value_net.register_forward_hook(lambda _, inputs, __: lengths.append(len(inputs[0])))
        model.learn(64, callback)
        assert lengths.count(64) >= 1
        assert set(lengths) <= {64, 16, 2, 1}, "the rollout, minibatches, the last values, the ends of episodes"


def test_which_callbacks_are_watched():
    ours = make(TRPL)._init_callback(None)
    assert leaves_policy_alone(ours)
    known, foreign = EveryNTimesteps(2, CallbackList([])), Calls(lambda *_: None)
    assert leaves_policy_alone(CallbackList([ours, known]))
    assert not leaves_policy_alone(make(TRPL)._init_callback(lambda *_: True))
    assert not leaves_policy_alone(CallbackList([EveryNTimesteps(2, foreign)]))
    known.callback._on_step = lambda: True
    assert not leaves_policy_alone(known)


def test_a_watch_notices_every_change_and_looks_back():
    net = nn.Sequential(nn.Linear(3, 40), nn.BatchNorm1d(40), nn.Tanh(), nn.Linear(40, 2)).eval()
    net[0].weight.data = th.randn(3, 40).t()  # not contiguous
    x = th.randn(5, 3)
    watch, expected = PolicyWatch(net), net(x)

    def one_number() -> None:
        net[3].weight.data[1, 17] += 1e-6

    def another_shape() -> None:
        net[3].weight.data = th.randn(4, 40)
        net[3].bias.data = th.randn(4)

    changes = [
        one_number,
        another_shape,
        lambda: net[0].weight.data.mul_(1.01),
        lambda: net[1].running_mean.add_(1),
        lambda: setattr(net[3], "weight", nn.Parameter(net[3].weight.detach().clone())),
        lambda: net.__setitem__(2, nn.ReLU()),
    ]
    for change in changes:
        watch.look()
        assert not watch.has_changed()
        expected = net(x)
        change()
        assert watch.has_changed()
        now = net(x)
        with watch.before():
            assert th.equal(net(x), expected)
        assert th.equal(net(x), now)


class KeepsLocals(BaseCallback):
    """Keeps what SB3's callbacks find, at every step and at the end of a rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.ends = [], []

    def _look(self) -> dict:
        return {key: copy.deepcopy(self.locals[key]) for key in ("obs_tensor", "values", "log_probs")}

    def _on_step(self) -> bool:
        assert "values" in self.locals
        assert self.locals.get("values") is not None
        assert "nothing" not in self.locals
        assert self.locals.get("nothing", 3) == 3
        self.steps.append(self._look())
        return True

    def _on_rollout_end(self) -> None:
        self.ends.append(self._look())


@pytest.mark.parametrize("cls", [TRPL, FixPO, LeanPPO, LeanTRPO])
def test_callbacks_find_values_and_log_probabilities(cls):
    """At every step, and at the end of a rollout those that SB3 leaves: the last step's, but the values after it."""
    model, keep = make(cls, ActionEnv(ACTION_SPACES["discrete" if cls is LeanPPO else "box"])), KeepsLocals()
    _, callback = model._setup_learn(10_000, CallbackList([keep]))
    callback.on_training_start({}, {})
    for _ in range(2):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        buffer, steps, end = model.rollout_buffer, keep.steps[-32:], keep.ends[-1]
        values, log_probs = (th.stack([step[key].flatten() for step in steps]) for key in ("values", "log_probs"))
        np.testing.assert_allclose(values, buffer.values, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(log_probs, buffer.log_probs, rtol=1e-5, atol=1e-6)
        observations = th.stack([step["obs_tensor"] for step in steps])
        assert np.array_equal(observations, buffer.observations)
        last = model.policy.obs_to_tensor(model._last_obs)[0]
        assert end["values"].shape == (1, 1)
        assert th.equal(end["values"], model.policy.predict_values(last).detach())
        assert th.allclose(end["log_probs"], log_probs[-1])
        assert th.equal(end["obs_tensor"], observations[-1])


# --- which parameters are trained ---


def freeze(model, n: int) -> None:
    """The hidden layers in the second update, everything in the fourth, the mean's layer in the fifth."""
    policy = model.policy
    policy.requires_grad_(n != 3)
    policy.mlp_extractor.requires_grad_(n not in (1, 3))
    policy.action_net.requires_grad_(n not in (3, 4))


def history_of(cls, n_updates: int, **kwargs) -> list[dict[str, th.Tensor]]:
    """The parameters before every update and after the last, while some are frozen."""
    history = []

    def look(model, n) -> None:
        history.append(parameters(model))
        freeze(model, n)

    model = make(cls, vec_env(2), learning_rate=1e-3, **kwargs).learn(64 * n_updates, Calls(look))
    assert any(step.is_compiled for step in model._compiled_steps.values()) is bool(model.compile)
    return [*history, parameters(model)]


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_what_is_frozen_does_not_move_by_a_bit(cls):
    history = history_of(cls, 6)

    def moved(n: int, part: str) -> bool:
        return any(not th.equal(history[n][key], history[n + 1][key]) for key in history[n] if key.startswith(part))

    assert [moved(n, "mlp_extractor") for n in range(6)] == [True, False, True, False, True, True]
    assert [moved(n, "action_net") for n in range(6)] == [True, True, True, False, False, True]
    assert [moved(n, "value_net") for n in range(6)] == [True, True, True, False, True, True]
    assert not moved(3, "")


@pytest.mark.traced
@pytest.mark.parametrize("cls", [TRPL, LeanPPO])
def test_freezing_and_unfreezing_compiled(cls):
    """As without compilation."""
    kwargs = {"n_critic_epochs": 0} if cls is TRPL else {}
    for ours, expected in zip(history_of(cls, 3, compile=True, **kwargs), history_of(cls, 3, **kwargs), strict=True):
        for name, value in expected.items():
            assert th.allclose(ours[name], value, rtol=1e-3, atol=1e-5), name


class Encoder(LinearExtractor):
    """A pretrained encoder, frozen, and a layer to train."""

    def __init__(self, observation_space: spaces.Box, is_passed_without_gradient: bool = False) -> None:
        super().__init__(observation_space)
        self.layers.requires_grad_(False)
        self.last = nn.Linear(8, 8)
        self.is_passed_without_gradient = is_passed_without_gradient

    def forward(self, observations: th.Tensor) -> th.Tensor:
        with th.set_grad_enabled(th.is_grad_enabled() and not self.is_passed_without_gradient):
            encoded = self.layers(observations)
        return self.last(encoded)


@pytest.mark.parametrize("without_gradient", [False, True])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("cls", ALGORITHMS)
def test_frozen_encoders(cls, share, without_gradient):
    """From the start; and unfrozen later, they are trained."""
    if cls is PAPI and share:
        pytest.skip("PAPI moves the policy's hidden layers back, and shares none")
    kwargs = {"features_extractor_class": Encoder, "share_features_extractor": share}
    kwargs["features_extractor_kwargs"] = {"is_passed_without_gradient": without_gradient}
    model = make(cls, learning_rate=1e-2, policy_kwargs=kwargs)
    before = parameters(model)
    model.learn(128)
    after = parameters(model)
    encoders = [key for key in before if ".layers." in key]
    assert encoders
    assert all(th.equal(before[key], after[key]) for key in encoders)
    trained = [key for key in before if "pi_features_extractor.last" in key or "action_net" in key]
    assert not any(th.equal(before[key], after[key]) for key in trained)
    model.policy.requires_grad_(True)
    model.learn(64, reset_num_timesteps=False)
    moved = [key for key in encoders if not th.equal(parameters(model)[key], after[key])]
    assert bool(moved) is not without_gradient


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.SGD])
def test_parts_frozen_after_construction(cls, optimizer):
    kwargs = {"features_extractor_class": LinearExtractor, "optimizer_class": optimizer}
    parts = [["features_extractor"], ["value_net", "mlp_extractor.value_net", "vf_features_extractor"], [""]]
    for names in parts:
        model = make(cls, policy_kwargs=kwargs | {"share_features_extractor": False})
        for name in names:
            model.policy.get_submodule(name).requires_grad_(False)
        before = parameters(model)
        model.learn(128)
        for key, value in parameters(model).items():
            is_frozen = not model.policy.get_parameter(key).requires_grad
            assert th.equal(value, before[key]) or not is_frozen, key
        assert names == [""] or not all_equal(before, parameters(model))


def test_an_encoder_that_both_share_may_be_one_object():
    """The same frozen module within two extractors is nothing that actor and critic train together."""
    encoder = nn.Linear(3, 8).requires_grad_(False)

    class Own(BaseFeaturesExtractor):
        def __init__(self, observation_space: spaces.Box) -> None:
            super().__init__(observation_space, 8)
            self.encoder, self.last = encoder, nn.Linear(8, 8)

        def forward(self, observations: th.Tensor) -> th.Tensor:
            return self.last(self.encoder(observations))

    model = make(TRPL, policy_kwargs={"features_extractor_class": Own}).learn(64)
    assert not model.policy.shares_parameters
    encoder.requires_grad_(True)
    assert make(TRPL, policy_kwargs={"features_extractor_class": Own}).policy.shares_parameters


# --- observations that a layer cannot see ---


class Tokens(gym.Env):
    """Words from 1 to 5, and a number that is never 0."""

    observation_space = spaces.Box(np.array([1.0, 0.5], np.float32), np.array([5.0, 2.0], np.float32))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action):
        self.t += 1
        return self._observe(), float(action[0]), False, self.t == 9, {}

    def _observe(self):
        return np.array([self.np_random.integers(1, 6), self.np_random.uniform(0.5, 2)], np.float32)


class Embedding(BaseFeaturesExtractor):
    """Has no vector for word 0, chooses a layer by the word, and divides by the number."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 4)
        self.embedding = nn.Embedding(5, 4)
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, observations: th.Tensor) -> th.Tensor:
        words, numbers = observations[:, 0].long() - 1, observations[:, 1:]
        if bool((numbers == 0).any()):
            raise ZeroDivisionError
        embedded = self.embedding(words) / numbers
        routes = [expert(embedded) for k, expert in enumerate(self.experts) if bool((words % 2 == k).any())]
        return th.stack(routes).mean(0)


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("share", [False, True])
def test_extractors_are_shown_observations_of_the_space_alone(cls, share):
    """And parameters that the observation of today does not need are trained, too."""
    if cls is PAPI and share:
        pytest.skip("PAPI moves the policy's hidden layers back, and shares none")
    kwargs = {"features_extractor_class": Embedding, "share_features_extractor": share}
    model = make(cls, Tokens(), policy_kwargs=kwargs, learning_rate=1e-2, max_grad_norm=0.5)
    before = parameters(model)
    model.learn(64)
    for key, value in parameters(model).items():
        assert not key.startswith(("pi_features", "vf_features")) or not th.equal(value, before[key]), key


def test_building_a_model_draws_as_many_random_numbers_as_sb3():
    """Finding the parameters draws none: the weights of equal seeds are those of SB3's policy."""
    ours, own = make(FixPO), make(LeanPPO)
    assert all_equal(parameters(ours), parameters(own))
    space = PointEnv().observation_space
    state = space.np_random.bit_generator.state
    TRPL("MlpPolicy", PointEnv(), device="cpu")
    assert space.np_random.bit_generator.state == state


# --- scalars ---


def change_scalars(model, n: int) -> None:
    for name, value in (
        ("ent_coef", 1e-3 * (n + 1)),
        ("vf_coef", 0.5 + 0.01 * n),
        ("clip_range_vf", 0.2 + 0.01 * n),
        ("clip_range", 0.2 + 0.01 * n),
        ("trust_region_coef", 8.0 + n),
        ("kl_bound", 0.1 + 0.01 * n),
        ("kl_target_coef", 2.0 + 0.01 * n),
        ("beta_learning_rate", 0.01 * (n + 1)),
        ("max_grad_norm", 0.5 + 0.1 * n),
        ("mean_bound", 0.03 + 0.001 * n),
        ("cov_bound", 0.001 + 0.0001 * n),
        ("critic_learning_rate", 1e-3 / (n + 1)),
    ):
        if hasattr(model, name):
            setattr(model, name, value)


@pytest.mark.traced
@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (TRPL, {"ent_coef": 1e-4, "max_grad_norm": 1.0, "policy_kwargs": SHARED}),
        (FixPO, {"ent_coef": 1e-4, "clip_range_vf": 0.2}),
        (LeanPPO, {"clip_range_vf": 0.2}),
    ],
)
def test_scalars_changed_at_every_update_are_inputs(cls, kwargs):
    """For 30 updates, without compiling again, and with the effect that they have in steps that are not compiled."""
    models = {}
    for compile in (False, True):
        models[compile] = make(cls, compile=compile, n_epochs=1, **kwargs)
        models[compile].learn(64)
        th._dynamo.utils.counters.clear()
        models[compile].learn(64 * 30, Calls(change_scalars), reset_num_timesteps=False)
        assert th._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    steps = models[True]._compiled_steps.values()
    assert steps
    assert not any(step._is_broken for step in steps)
    for name, expected in parameters(models[False]).items():
        assert th.allclose(parameters(models[True])[name], expected, rtol=1e-2, atol=1e-3), name


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_scalars_have_an_effect_when_they_are_changed(cls):
    """Every one of them, in the update after: what is trained with it differs from what is trained without."""
    names = [name for name in vars(make(cls)) if name in SCALARS and hasattr(make(cls), name)]
    assert len(names) > 3

    def trained(name: str | None) -> dict[str, th.Tensor]:
        kwargs = {"ent_coef": 0.1, "max_grad_norm": 0.1, "learning_rate": 3e-2}
        if cls in (FixPO, LeanPPO):
            kwargs["clip_range_vf"] = 0.2
        if cls is TRPL:
            kwargs["policy_kwargs"] = {"features_extractor_class": LinearExtractor, "share_features_extractor": True}
        model = make(cls, **kwargs)

        def change(model, n: int) -> None:
            if n == 2 and name is not None:
                setattr(model, name, SCALARS[name])

        model.learn(64 * 4, Calls(change))
        state = {} if cls is not FixPO else {"beta": model.dual.value.clone()}
        return parameters(model) | state

    expected = trained(None)
    for name in names:
        if (cls, name) not in ((TRPL, "critic_learning_rate"), (PAPI, "vf_coef")):  # without an effect by themselves
            assert not all_equal(expected, trained(name)), name


SCALARS = {
    "ent_coef": 0.5,
    "vf_coef": 2.0,
    "clip_range": 0.01,
    "clip_range_vf": 0.01,
    "trust_region_coef": 100.0,
    "kl_bound": 1e-3,
    "kl_target_coef": 30.0,
    "beta_learning_rate": 1.0,
    "max_grad_norm": 1e-4,
    "mean_bound": 1e-5,
    "cov_bound": 1e-7,
    "critic_learning_rate": 1e-6,
}


@pytest.mark.traced
def test_another_optimizer_is_used_from_the_next_update_on():
    """A callback may start with new moments, or another class."""

    def change(model, n: int) -> None:
        policy = model.policy
        if n == 1:
            policy.optimizer = th.optim.Adam(policy.parameters(), lr=1e-3, eps=1e-5)
        if n == 2:
            policy.optimizer = th.optim.SGD(policy.parameters(), lr=1e-3)

    models = [make(LeanPPO, compile=compile).learn(64 * 3, Calls(change)) for compile in (False, True)]
    for name, expected in parameters(models[0]).items():
        assert th.allclose(parameters(models[1])[name], expected, rtol=1e-3, atol=1e-5), name


@pytest.mark.traced
def test_a_compilation_that_fails_in_the_middle_goes_on_without(monkeypatch):
    """With one warning, and the parameters that steps without compilation give."""
    models = [make(TRPL, compile=compile).learn(64) for compile in (False, True)]
    for step in models[1]._compiled_steps.values():
        for variant in step._variants.values():

            def fail(*_):
                raise RuntimeError("no more compilation")

            variant.function._checked = fail
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for model in models:
            th.manual_seed(1)
            model.learn(64, reset_num_timesteps=False).learn(64, reset_num_timesteps=False)
    messages = [str(w.message) for w in caught if "could not be compiled" in str(w.message)]
    assert len(messages) == 2, "one for each kind of step"
    assert "no more compilation" in messages[0]
    for name, expected in parameters(models[0]).items():
        assert th.allclose(parameters(models[1])[name], expected, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("cls", [*ALGORITHMS, LeanTRPO])
def test_an_interrupt_leaves_gradients_on(cls, request):
    """Ctrl-C where a block without gradients has begun, and its end is not reached."""
    request.addfinalizer(lambda: th.set_grad_enabled(True))

    def interrupted(model, n: int) -> None:
        th.set_grad_enabled(False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(cls).learn(64, Calls(interrupted, "step"))
    assert th.is_grad_enabled()


# --- the model as a whole ---


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def cloudpickled(model):
    return cloudpickle.loads(cloudpickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return type(model).load(file, env=model.env, device="cpu")


@pytest.mark.traced
@pytest.mark.parametrize("cls", ALGORITHMS)
def test_models_are_copied_at_any_time(cls):
    """Before training, in the middle of a rollout, and after compiled updates; the copy trains on as the model does."""
    copies = []

    def copy_it(model, n: int) -> None:
        if n in (0, 5, 70):
            copies.extend(way(model) for way in (copy.deepcopy, pickled, cloudpickled, saved))
            copies[-1].copied_at = [copied for copied in copies if copied is not copies[-1]] and n

    model = make(cls, compile=True, gamma=0.9)
    for way in (copy.deepcopy, pickled, cloudpickled, saved):
        assert all_equal(parameters(way(model)), parameters(model))
    model.learn(64 * 3, Calls(copy_it, "step"))
    assert len(copies) == 12
    assert any(step.is_compiled for step in model._compiled_steps.values())
    for way in (copy.deepcopy, pickled, cloudpickled):
        twin = way(model)
        assert all_equal(parameters(twin), parameters(model))
        twin.compile = False
        th.manual_seed(5)
        twin.learn(64, reset_num_timesteps=False)
    model.compile = False
    th.manual_seed(5)
    model.learn(64, reset_num_timesteps=False)
    for name, value in parameters(model).items():
        assert th.allclose(parameters(twin)[name], value, rtol=1e-4, atol=1e-6), name


GIVEN = {"learning_rate": 1e-3, "critic_learning_rate": "lin_1e-3", "clip_range_vf": 0.2, "mean_bound": "lin_0.03"}
GIVEN |= {"cov_bound": 2e-3, "kl_bound": 0.3}


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("learning_rate", [1e-3, "lin_1e-3"])
def test_arguments_stay_what_was_given(cls, learning_rate):
    """After construction, training and loading; SB3's PPO makes schedules of its clip ranges, and so does LeanPPO."""
    given = {"learning_rate": learning_rate}
    given |= {name: value for name, value in GIVEN.items() if hasattr(make(cls), name) and name != "learning_rate"}
    model = make(cls, **given)
    if cls is LeanPPO:
        given.pop("clip_range_vf")
    for one in (model, model.learn(64), saved(model), copy.deepcopy(model)):
        assert {name: getattr(one, name) for name in given} == given
        assert one.lr_schedule(1.0) == 1e-3
        assert one.lr_schedule(0.5) == (1e-3 if learning_rate == 1e-3 else 5e-4)


# --- several seeds at once ---


def batch_of(cls, seeds=(0, 1, 2), compile=False, **kwargs) -> SeedBatch:
    options = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "device": "cpu"} | kwargs
    options["policy_kwargs"] = {"net_arch": [8]} | options.get("policy_kwargs", {})
    return SeedBatch(cls, "MlpPolicy", lambda seed: vec_env(2), seeds, compile, **options)


@pytest.mark.parametrize("when", ["rollout", "step"])
@pytest.mark.parametrize(("cls", "contextual"), [(TRPL, False), (TRPL, True), (FixPO, None)])
def test_seeds_act_with_their_policies_as_they_are(cls, contextual, when):
    """Each with its own, which its own callback changes at its own time."""
    kwargs = {} if contextual is None else {"policy_kwargs": {"contextual_std": contextual}}
    for change in CHANGES:

        def callback(model, change=change) -> Acting:
            return Acting(lambda m, n: (when == "rollout" or n % (3 + model.seed) == 2) and change(m, n), when)

        batch = batch_of(cls, **kwargs)
        for model in batch.models:
            model.train = lambda: None
        batch.learn(128, callback)


@pytest.mark.traced
@pytest.mark.parametrize("cls", [TRPL, FixPO])
def test_seeds_freeze_and_change_scalars_each_for_itself(cls):
    """Compiled as each alone without: frozen at different times, clipped and weighted by different numbers."""

    def callback(model) -> Calls:
        def change(m, n: int) -> None:
            m.policy.mlp_extractor.policy_net.requires_grad_(n != 1 + model.seed)
            m.max_grad_norm, m.ent_coef, m.vf_coef = 0.1 * (n + 1), 1e-3 * (n + 1 + model.seed), 0.5 + 0.1 * n

        return Calls(change)

    kwargs = {"ent_coef": 1e-4, "max_grad_norm": 0.5, "learning_rate": 1e-3}
    kwargs |= {"n_critic_epochs": 0} if cls is TRPL else {}
    batch = batch_of(cls, (0, 1), compile=True, **kwargs).learn(64 * 3, callback)
    assert len(batch._steps) == (3 if cls is TRPL else 2), "TRPL's critic takes no steps"
    for model in batch.models:
        single = make(cls, vec_env(2), **(kwargs | {"seed": model.seed})).learn(64 * 3, callback(model))
        for name, expected in parameters(single).items():
            assert th.allclose(parameters(model)[name], expected, rtol=1e-3, atol=1e-4), name


@pytest.mark.traced
def test_seeds_go_on_without_a_compilation_that_fails(monkeypatch):
    """In the middle of an update: no step is lost, none is taken twice."""
    calls = []
    original = Compiled.__call__

    def fail_at_the_third(self, varying, fixed):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no more compilation")
        return original(self, varying, fixed)

    monkeypatch.setattr(Compiled, "__call__", fail_at_the_third)
    batch = batch_of(FixPO, (0, 1), compile=True, fixup="off")
    with pytest.warns(UserWarning, match="no more compilation"):
        batch.learn(64)
    assert len(calls) == 3
    for model in batch.models:
        single = make(FixPO, vec_env(2), seed=model.seed, fixup="off").learn(64)
        for name, expected in parameters(single).items():
            assert th.allclose(parameters(model)[name], expected, rtol=1e-3, atol=1e-4), name
        steps = [state["step"].item() for state in model.policy.optimizer.state.values()]
        assert steps == [8] * len(steps)
