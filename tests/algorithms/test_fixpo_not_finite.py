"""FixPO when everything goes wrong: steps far too large, in all action spaces. And torch's own settings are its own."""

import threading

import pytest
import torch as th
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from support import ACTION_SPACES, ActionEnv, Recorder, update

from sb3_trl import FixPO
from sb3_trl.policies.action_parameters import Actions, ActionsAndValues, action_parameters

OPTIONS = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "kl_bound": 0.05, "seed": 0, "device": "cpu"}
SPACES = [("box", {}), ("discrete", {}), ("multi_discrete", {}), ("multi_binary", {})]
GSDE = [
    ("box", {"use_sde": True}),
    ("box", {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    ("box", {"use_sde": True, "policy_kwargs": {"full_std": False, "use_expln": True}}),
]


class OwnPolicy(ActorCriticPolicy):
    """Known by its torch distributions alone, which look at their arguments."""

    def _get_action_dist_from_latent(self, latent_pi):
        return super()._get_action_dist_from_latent(latent_pi)


def make(space="box", policy="MlpPolicy", **kwargs) -> FixPO:
    return FixPO(policy, ActionEnv(ACTION_SPACES[space]), **(OPTIONS | {"compile": False} | kwargs))


@pytest.fixture(autouse=True)
def _torch_keeps_its_settings(monkeypatch):
    def fail(value: bool) -> None:
        raise AssertionError("torch's distributions are everybody's")

    # Torch sets it to False itself, once, when something is compiled.
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", True)
    monkeypatch.setattr(th.distributions.Distribution, "set_default_validate_args", staticmethod(fail))
    yield
    assert th.distributions.Distribution._validate_args


@pytest.mark.parametrize("learning_rate", [3.0, 3e5, 3e12, 3e26])
@pytest.mark.parametrize(
    ("space", "kwargs"),
    [*SPACES, *GSDE, *((space, {"policy": OwnPolicy} | kwargs) for space, kwargs in [*SPACES, *GSDE[:2]])],
)
def test_the_bound_holds_whatever_the_learning_rate(space, kwargs, learning_rate):
    recorder = Recorder()
    model = make(space, learning_rate=learning_rate, max_fixup_steps=4, max_grad_norm=None, **kwargs)
    model.learn(4 * OPTIONS["n_steps"], recorder)
    assert [log["trust_region/violation_fraction"] for log in recorder.logs] == [0.0] * 4
    assert all(0 <= log["fixpo/kl_max"] <= 0.05 for log in recorder.logs)
    assert recorder.logs[-1]["fixpo/rollbacks"] > 0
    assert all(p.isfinite().all() for p in model.policy.parameters())


def test_a_distribution_that_cannot_be_made_is_not_finite():
    model = make(policy=OwnPolicy)
    with th.no_grad():
        model.policy.action_net.bias[0] = th.nan
    with pytest.raises(FloatingPointError, match="distribution cannot be made: Expected parameter loc"):
        Actions(model.policy)(th.zeros(3, 4))


@pytest.mark.parametrize(("space", "kwargs"), [*SPACES, *GSDE])
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


def test_two_models_in_two_threads():
    """Nothing that one of them sets can outlive the other."""
    models = [make(space, learning_rate=3e12) for space in ("box", "discrete")]
    threads = [threading.Thread(target=model.learn, args=(128,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [model._n_updates for model in models] == [4, 4]


def test_an_update_that_fails(monkeypatch):
    model = make().learn(64)
    monkeypatch.setattr(model, "_fixup_phase", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        update(model)


def test_finite_parameters_of_which_no_distribution_can_be_made(monkeypatch):
    """A standard deviation of 0: the search back to the old policy passes many such."""
    model = make(policy=OwnPolicy).learn(64)

    @th.no_grad()
    def ruin(*_) -> bool:
        model.policy.log_std -= 1e6
        return True

    monkeypatch.setattr(model, "_primary_phase", ruin)
    log = update(model)
    assert 0 < log["fixpo/kl_max"] <= 0.05
    assert log["fixpo/rollbacks"] == model.n_epochs
