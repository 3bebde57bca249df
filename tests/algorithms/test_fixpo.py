"""FixPO: the guarantee on every action space, the ablations, saving, learning, the checks."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium.wrappers import TransformReward
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from support import ACTION_SPACES, SHARED, ActionEnv, PointEnv, Recorder, further, vec_env
from torch import nn
from torch.nn.utils import parameters_to_vector

from sb3_trl import FixPO


def make_fixpo(env=None, policy="MlpPolicy", **kwargs) -> FixPO:
    small = {"n_steps": 128, "batch_size": 32, "n_epochs": 3, "seed": 0, "device": "cpu"}
    return FixPO(policy, ActionEnv(ACTION_SPACES["box"]) if env is None else env, **(small | kwargs))


def logs_of(model: FixPO, updates: int) -> list[dict]:
    recorder = Recorder()
    model.learn(updates * model.n_steps * model.n_envs, callback=recorder)
    assert len(recorder.logs) == updates
    return recorder.logs


@th.no_grad()
def distribution_of(policy: ActorCriticPolicy, observations):
    """The distribution in an object of its own; policies refill one and the same."""
    policy.set_training_mode(False)
    return copy.copy(policy.get_distribution(observations))


class Witness:
    """Recompute, with SB3's own divergence, how far every state moved in every update."""

    def __init__(self, model: FixPO, monkeypatch: pytest.MonkeyPatch) -> None:
        self.largest: list[float] = []
        self.means: list[float] = []
        train = type(model).train

        def witnessed(inner: FixPO) -> None:
            observations = inner._rollout().observations
            old = distribution_of(inner.policy, observations)
            train(inner)
            new = distribution_of(inner.policy, observations)
            kl = kl_divergence(*((old, new) if inner.kl_direction == "old_new" else (new, old)))
            kl = kl.sum(-1) if kl.dim() > 1 else kl
            self.largest.append(kl.max().item())
            self.means.append(kl.mean().item())

        monkeypatch.setattr(type(model), "train", witnessed)


@pytest.mark.parametrize("direction", ["old_new", "new_old"])
@pytest.mark.parametrize("space", ACTION_SPACES)
def test_no_state_ever_moves_further_than_the_bound(space, direction, monkeypatch):
    """With a learning rate 100 times too high, and a bound that the primary phase alone does not keep."""
    model = make_fixpo(ActionEnv(ACTION_SPACES[space]), learning_rate=3e-2, kl_bound=0.05, kl_direction=direction)
    witness = Witness(model, monkeypatch)
    logs = logs_of(model, 4)
    assert max(witness.largest) <= 0.05 * (1 + 1e-3)
    assert sum(log["fixpo/fixup_steps"] for log in logs) > 0
    assert [log["trust_region/violation_fraction"] for log in logs] == [0.0] * 4
    for log, largest in zip(logs, witness.largest, strict=True):
        assert log["fixpo/kl_max"] == pytest.approx(largest, rel=1e-2, abs=1e-5)


@pytest.mark.traced
@pytest.mark.parametrize("space", ["box", "multi_discrete", *further("discrete", "multi_binary")])
def test_no_state_ever_moves_further_than_the_bound_compiled(space, monkeypatch):
    """Where compiled code looks first, and a chunk of the fixup phase is smaller than the others."""
    options = {"learning_rate": 3e-2, "kl_bound": 0.05, "fixup_batch_size": 50, "compile": True}
    model = make_fixpo(ActionEnv(ACTION_SPACES[space]), **options)
    witness = Witness(model, monkeypatch)
    logs = logs_of(model, 4)
    assert model._evaluations
    assert max(witness.largest) <= 0.05 * (1 + 1e-3)
    assert sum(log["fixpo/fixup_steps"] for log in logs) > 0
    assert [log["trust_region/violation_fraction"] for log in logs] == [0.0] * 4
    assert logs[-1]["fixpo/rollbacks"] == 0


@pytest.mark.parametrize("kwargs", [{"use_sde": True}, {"policy_kwargs": {"share_features_extractor": False}}])
def test_gsde_and_separate_extractors(kwargs, monkeypatch):
    model = make_fixpo(n_steps=64, learning_rate=1e-2, kl_bound=0.05, **kwargs)
    witness = Witness(model, monkeypatch)
    logs_of(model, 3)
    assert 0 < max(witness.largest) <= 0.05 * (1 + 1e-3)


def test_the_guarantee_without_any_help_from_the_penalty(monkeypatch):
    """β = 0 forever: the fixup has no gradient, its steps are capped, and the halving search ends it."""
    model = make_fixpo(learning_rate=3e-2, kl_bound=0.05, beta_init=0.0, beta_learning_rate=0.0, max_fixup_steps=4)
    witness = Witness(model, monkeypatch)
    logs = logs_of(model, 4)
    assert max(witness.largest) <= 0.05 * (1 + 1e-3)
    assert logs[-1]["fixpo/rollbacks"] > 0
    assert all(log["fixpo/fixup_steps"] <= 4 * model.n_epochs for log in logs)
    assert logs[-1]["fixpo/beta"] == 0


class NanOnce(nn.Module):
    """Returns NaN at one chosen call."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.countdown = inner, -1

    def forward(self, x):
        self.countdown -= 1
        return self.inner(x) * (float("nan") if self.countdown == 0 else 1.0)


@pytest.mark.parametrize("countdown", [3, 14], ids=["in the primary phase", "later"])
def test_a_network_that_yields_nan_once_does_not_break_training(countdown, monkeypatch):
    model = make_fixpo(learning_rate=3e-2, kl_bound=0.02)
    model.policy.action_net = NanOnce(model.policy.action_net)
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=3e-2)
    model._policy_parameters = [p for name, p in model.policy.named_parameters() if "value" not in name]
    primary = FixPO._primary_phase

    def primed(inner, *args):
        if inner.num_timesteps == inner.n_steps:
            inner.policy.action_net.countdown = countdown
        return primary(inner, *args)

    monkeypatch.setattr(FixPO, "_primary_phase", primed)
    logs = logs_of(model, 3)
    assert all(p.isfinite().all() for p in model.policy.parameters())
    assert [log["trust_region/violation_fraction"] for log in logs] == [0.0] * 3
    assert logs[-1]["fixpo/rollbacks"] > 0
    assert logs[-1]["trust_region/kl_max"] > 0, "training went on"


def test_fixup_leaves_the_critic_alone(monkeypatch):
    model = make_fixpo(learning_rate=3e-2, kl_bound=0.01)
    own = [p for name, p in model.policy.named_parameters() if "value" in name]
    fixup, seen = FixPO._fixup_phase, []

    def watched(inner, *args):
        before = [p.detach().clone() for p in own]
        steps = fixup(inner, *args)
        assert all(th.equal(p, q) for p, q in zip(own, before, strict=True))
        seen.append(len(steps))
        return steps

    monkeypatch.setattr(FixPO, "_fixup_phase", watched)
    logs_of(model, 2)
    assert sum(seen) > 0


def test_the_fixup_shares_an_extractor_and_still_guarantees(monkeypatch):
    model = make_fixpo(PointEnv(), learning_rate=1e-2, kl_bound=0.02, policy_kwargs=SHARED)
    witness = Witness(model, monkeypatch)
    logs_of(model, 3)
    assert 0 < max(witness.largest) <= 0.02 * (1 + 1e-3)


@pytest.mark.parametrize(("observation", "policy"), [("dict", "MultiInputPolicy"), ("image", "CnnPolicy")])
def test_observations(observation, policy, monkeypatch):
    env = vec_env(2, observation=observation)
    model = make_fixpo(env, policy, n_steps=16, batch_size=8, n_epochs=1, learning_rate=1e-2, kl_bound=0.02)
    witness = Witness(model, monkeypatch)
    logs_of(model, 2)
    assert 0 < max(witness.largest) <= 0.02 * (1 + 1e-3)


# --- the ablations ---


def test_without_fixup_nothing_is_guaranteed():
    logs = logs_of(make_fixpo(learning_rate=3e-2, kl_bound=0.02, fixup="off"), 3)
    assert all(log["fixpo/fixup_steps"] == 0 for log in logs)
    assert max(log["trust_region/violation_fraction"] for log in logs) > 0


def test_mean_statistic_bounds_the_mean_and_not_the_maximum(monkeypatch):
    model = make_fixpo(learning_rate=3e-2, kl_bound=0.02, kl_statistic="mean")
    witness = Witness(model, monkeypatch)
    logs_of(model, 4)
    assert max(witness.means) <= 0.02 * (1 + 1e-3)
    assert max(witness.largest) > 0.02


def test_fixup_in_the_last_epoch_only(monkeypatch):
    calls = []
    fixup = FixPO._fixup_phase
    monkeypatch.setattr(FixPO, "_fixup_phase", lambda self, *args: calls.append(1) or fixup(self, *args))
    for setting, expected in (("epoch", 3), ("update", 1)):
        calls.clear()
        logs = logs_of(make_fixpo(learning_rate=3e-2, kl_bound=0.02, fixup=setting), 1)
        assert len(calls) == expected
        assert logs[-1]["trust_region/violation_fraction"] == 0


def test_directions_and_targets_differ():
    settings = [{}, {"kl_direction": "new_old"}, {"kl_target_coef": 1.0}, {"beta_learning_rate": 0.0}]
    betas = [logs_of(make_fixpo(learning_rate=3e-3, kl_bound=0.05, **kwargs), 3)[-1] for kwargs in settings]
    assert len({log["trust_region/kl_mean"] for log in betas}) == len(settings)
    assert betas[0]["fixpo/beta"] > betas[2]["fixpo/beta"], "a higher target coefficient asks for a higher β"
    assert betas[3]["fixpo/beta"] == 1.0


# --- saving, learning, errors ---


def test_continuing_a_saved_model_makes_the_same_update(tmp_path):
    model = make_fixpo(learning_rate=1e-2, kl_bound=0.02, beta_init=0.0, beta_learning_rate=0.0, max_fixup_steps=1)
    model.learn(256)
    assert model._rollbacks > 0
    model.dual.update(th.tensor(1.0))
    model.save(tmp_path / "model")
    loaded = FixPO.load(tmp_path / "model", env=model.env, device="cpu")
    assert loaded._rollbacks == model._rollbacks
    assert loaded.dual.value == model.dual.value
    for m in (model, loaded):
        m.rollout_buffer, m._logger = model.rollout_buffer, model.logger
        m.beta_learning_rate = 0.01
        th.manual_seed(3)
        m.train()
    assert all(th.equal(p, q) for p, q in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True))
    assert loaded.dual.value == model.dual.value


def test_it_learns():
    model = make_fixpo(PointEnv((1,)), n_steps=256, n_epochs=5, learning_rate=3e-3, seed=1, stats_window_size=20)
    returns = []
    for _ in range(2):
        model.learn(256 if not returns else 3000)
        returns.append(np.mean([episode["r"] for episode in model.ep_info_buffer]))
    assert returns[1] > 0.3 * returns[0], "penalties should have fallen to a third"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kl_bound": 0.0}, "kl_bound=0.0 must be positive"),
        ({"kl_bound": -1.0}, "kl_bound=-1.0 must be positive"),
        ({"kl_target_coef": 0.5}, "kl_target_coef=0.5 must be at least 1"),
        ({"kl_statistic": "median"}, r"kl_statistic='median' is unknown: choose 'max' or 'mean'"),
        ({"kl_direction": "both"}, "kl_direction='both' is unknown"),
        ({"fixup": True}, "fixup=True is unknown"),
        ({"max_fixup_steps": 0}, "max_fixup_steps=0 must be at least 1"),
        ({"fixup_batch_size": 0}, "fixup_batch_size=0 must be at least 1"),
        ({"beta_init": -1.0}, "beta_init=-1.0 must not be negative"),
        ({"beta_learning_rate": -0.1}, "beta_learning_rate=-0.1 must not be negative"),
        ({"batch_size": 1000}, "batch_size=1000 is larger than the rollout"),
        ({"raw_advantage": True}, "raw_advantage=True needs normalize_advantage=False"),
        ({"policy_kwargs": {"log_std": 0}}, "did you mean 'log_std_init'"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_fixpo(**kwargs)


def test_value_clipping_and_entropy_bonus_change_the_update():
    policies = []
    for kwargs in (
        {},
        {"clip_range_vf": 0.01},
        {"ent_coef": 0.1},
        {"normalize_advantage": False},
        {"max_grad_norm": None},
    ):
        model = make_fixpo(**kwargs).learn(256)
        policies.append(th.cat([p.detach().flatten() for p in model.policy.parameters()]))
    assert all(not th.equal(policies[0], other) for other in policies[1:])
    assert isinstance(model.policy, ActorCriticPolicy)


@pytest.mark.parametrize("raw", [True, False])
def test_raw_advantages_are_in_the_units_of_the_rewards(raw):
    """Ten times the reward is the same problem with ten times β and c_v where they are, with the same β where not."""

    def learned(scale: float, weight: float) -> th.Tensor:
        env = DummyVecEnv([lambda: TransformReward(PointEnv(), lambda reward: scale * reward)] * 2)
        env = VecNormalize(env, training=False, norm_obs=False)
        env.ret_rms.var = 9.0 * scale**2
        weights = {"beta_init": weight, "beta_learning_rate": 0.0, "vf_coef": 0.1 * weight, "max_grad_norm": None}
        options = {"normalize_advantage": False, "raw_advantage": raw, "fixup": "off"}
        options["policy_kwargs"] = {"optimizer_kwargs": {"eps": 1e-12}}  # or Adam sees the scale
        model = make_fixpo(env, learning_rate=1e-2, **weights, **options).learn(1024)
        return parameters_to_vector(model.policy.parameters()).detach()

    same, other = (10.0, 1.0) if raw else (1.0, 10.0)
    expected = learned(1.0, 1.0)
    assert th.allclose(learned(10.0, same), expected, atol=1e-3)
    assert not th.allclose(learned(10.0, other), expected, atol=1e-2)


def test_advantages_are_raw_where_rewards_are_not_normalised():
    def learned(raw: bool) -> th.Tensor:
        env = VecNormalize(DummyVecEnv([PointEnv]), norm_reward=False)
        model = make_fixpo(env, normalize_advantage=False, raw_advantage=raw).learn(256)
        return parameters_to_vector(model.policy.parameters()).detach()

    assert th.equal(learned(True), learned(False))
