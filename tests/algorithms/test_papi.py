"""PAPI: the bound after every update, what the projection leaves alone, saving, learning, errors."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from support import (
    SHARED,
    LinearExtractor,
    PointEnv,
    Recorder,
    all_equal,
    collect,
    copy_rollout,
    event_file,
    gaussian,
    parameters,
    update,
    vec_env,
)

from sb3_trl import PAPI
from sb3_trl.algorithms.papi import _assign, _copies
from sb3_trl.projections.gaussian import kl

BATCH_NORM = {"features_extractor_class": LinearExtractor, "features_extractor_kwargs": {"batch_norm": True}}
POLICIES = {
    "diag": {},
    "full": {"policy_kwargs": {"covariance": "full"}},
    "small std": {"policy_kwargs": {"init_std": 0.05}},
    "no hidden layers": {"policy_kwargs": {"net_arch": []}},
    "batch norm": {"policy_kwargs": BATCH_NORM},
    "relu": {"policy_kwargs": {"net_arch": [32, 32], "activation_fn": th.nn.ReLU, "ortho_init": False}},
    "dicts": {"policy": "MultiInputPolicy"},
    "images": {"policy": "CnnPolicy", "policy_kwargs": {"features_extractor_kwargs": {"features_dim": 8}}},
}


def make_papi(env=None, policy="MlpPolicy", **kwargs) -> PAPI:
    small = {"n_steps": 64, "batch_size": 32, "n_epochs": 3, "n_critic_epochs": 2, "seed": 0, "device": "cpu"}
    return PAPI(policy, PointEnv() if env is None else env, **(small | kwargs))


def env_for(name: str):
    return PointEnv(observation={"images": "image", "dicts": "dict"}.get(name, "box"))


class Witness:
    """Recompute, in float64 and from the networks alone, how far every update went; and what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.means: list[float] = []
        self.unprojected: list[float] = []
        train, check = PAPI.train, PAPI._check_finite_parameters

        def acting(model: PAPI):
            model.policy.set_training_mode(False)
            return gaussian(model, model._rollout().observations)

        def kl_to(old, model: PAPI) -> float:
            mean_part, cov_part = kl(acting(model), old)
            return (mean_part + cov_part).mean().item()

        def watched_train(model: PAPI) -> None:
            self.old = acting(model)
            train(model)
            self.means.append(kl_to(self.old, model))

        def watched_check(model: PAPI) -> None:
            check(model)
            self.unprojected.append(kl_to(self.old, model))

        monkeypatch.setattr(PAPI, "train", watched_train)
        monkeypatch.setattr(PAPI, "_check_finite_parameters", watched_check)


def logs_of(model: PAPI, updates: int) -> list[dict]:
    recorder = Recorder()
    model.learn(updates * model.n_steps * model.n_envs, callback=recorder)
    assert len(recorder.logs) == updates
    return recorder.logs


# --- the guarantee ---


@pytest.mark.parametrize("learning_rate", [3e-4, 3e-3, 1e-1])
@pytest.mark.parametrize("name", POLICIES)
def test_the_mean_divergence_never_exceeds_the_bound(name, learning_rate, monkeypatch):
    """Over several updates, and with a learning rate hundreds of times too high."""
    witness = Witness(monkeypatch)
    model = make_papi(env_for(name), learning_rate=learning_rate, **POLICIES[name])
    logs = logs_of(model, 4)
    assert max(witness.means) <= 0.015
    assert max(witness.means) > 0
    for log, mean, unprojected in zip(logs, witness.means, witness.unprojected, strict=True):
        assert log["trust_region/kl_mean"] == pytest.approx(mean, rel=1e-9)
        if unprojected <= 0.015:  # the policy inside comes back as it is
            assert mean == unprojected
            assert (log["papi/cov_share"], log["papi/mean_share"], log["papi/backtracks"]) == (1, 1, 0)
    if learning_rate == 1e-1:
        assert max(witness.unprojected) > 0.15, "there was something to project"


@pytest.mark.parametrize("bound", [1e-4, 0.1, 3.0])
def test_other_bounds(bound, monkeypatch):
    witness = Witness(monkeypatch)
    logs_of(make_papi(learning_rate=3e-2, kl_bound=bound), 10)
    assert max(witness.means) <= bound


def test_updates_go_as_far_as_the_bound_allows(monkeypatch):
    """Wherever the last layer alone decides: one that is inside is not pulled back any further."""
    witness = Witness(monkeypatch)
    model = make_papi(learning_rate=0.3, policy_kwargs={"net_arch": []}, learning_rate_decay=1.0)
    logs_of(model, 20)
    outside = [mean for mean, before in zip(witness.means, witness.unprojected, strict=True) if before > 0.015]
    assert len(outside) > 10
    assert min(outside) > 0.015 * (1 - 1e-3)


# --- the projection ---


def projected_model(**kwargs) -> tuple[PAPI, dict[str, th.Tensor], dict[str, float]]:
    model = make_papi(**({"learning_rate": 3e-2} | kwargs))
    collect(model)
    before = parameters(model)
    return model, before, update(model)


def test_the_critic_is_left_alone():
    model, _, log = projected_model()
    assert log["papi/mean_share"] < 1
    without, _, _ = projected_model(kl_bound=1e9)
    for name, tensor in parameters(model).items():
        if "value" in name:
            assert th.equal(tensor, parameters(without)[name]), name


def test_the_covariance_moves_on_a_straight_line_to_what_the_epochs_made_of_it():
    policy_kwargs = {"init_std": 1.0}
    model, _, log = projected_model(policy_kwargs=policy_kwargs)
    without, _, _ = projected_model(policy_kwargs=policy_kwargs, kl_bound=1e9)
    new, projected = (m.policy.gaussian(th.zeros(1, 3)).std.detach().double() for m in (without, model))
    expected = 1 + log["papi/cov_share"] * (new.square() - 1)
    assert 0 < log["papi/cov_share"] < 1
    th.testing.assert_close(projected.square(), expected, rtol=1e-5, atol=0)


def test_hidden_layers_are_those_of_an_epoch():
    """The newest that obey the bound together with the old last layer; a last layer between old and new."""
    model = make_papi(learning_rate=2e-2, policy_kwargs={"init_std": 0.1, "ortho_init": False}, n_epochs=6)
    collect(model)
    old_layer, kept = _copies(model._last_layer()), []
    improve = model._improve_policy

    def watched(rollout, stats):
        kept.append(improve(rollout, stats))
        kept.append(_copies(model._last_layer()))
        return kept[0]

    model._improve_policy = watched
    log = update(model)
    history, new_layer = kept
    undone = log["papi/backtracks"]
    assert undone > 0
    for tensor, expected in zip(model._hidden_layers(), history[-1 - undone], strict=True):
        assert th.equal(tensor, expected)
    for tensor, a, b in zip(model._last_layer(), old_layer, new_layer, strict=True):
        th.testing.assert_close(tensor, a + log["papi/mean_share"] * (b - a))

    rollout = model._rollout()
    _assign(model._last_layer(), old_layer)
    _assign(model._hidden_layers(), history[0])
    old = model._predictions(rollout)
    for back in range(undone):
        _assign(model._hidden_layers(), history[-1 - back])
        assert kl(model._predictions(rollout), old)[0].mean() > model._bound_of_means(model._predictions(rollout), old)


def test_the_learning_rate_falls_when_no_new_hidden_layers_will_do():
    kwargs = {"policy_kwargs": {"init_std": 1e-2, "ortho_init": False}, "n_epochs": 1}
    logs = logs_of(make_papi(learning_rate=1e-1, learning_rate_decay=0.5, **kwargs), 8)
    scale = 1.0
    for log in logs:
        assert log["train/learning_rate"] == pytest.approx(0.1 * scale)
        if log["papi/backtracks"] == 1:
            scale *= 0.5
        assert log["papi/learning_rate_scale"] == scale
    assert scale < 1
    logs = logs_of(make_papi(learning_rate=1e-1, learning_rate_decay=1.0, **kwargs), 8)
    assert max(log["papi/backtracks"] for log in logs) == 1
    assert {log["train/learning_rate"] for log in logs} == {0.1}


def test_the_history_is_bounded():
    model = make_papi(n_epochs=4)
    sizes, backtrack = [], model._backtrack
    model._backtrack = lambda *args: sizes.append(len(args[-1])) or backtrack(*args)
    model.learning_rate = model.lr_schedule = lambda _: 3e-2
    logs_of(model, 5)
    assert set(sizes) == {5}


def test_every_argument_changes_the_update():
    def after(**kwargs) -> dict[str, th.Tensor]:
        model = make_papi(**({"learning_rate": 3e-3} | kwargs))
        model.learn(256)
        return parameters(model)

    default = after()
    changes = (
        *({"clip_range": 0.05}, {"ent_coef": 0.1}, {"normalize_advantage": False}, {"max_grad_norm": 0.01}),
        *({"kl_bound": 0.001}, {"critic_learning_rate": 1e-3}, {"n_critic_epochs": 1}, {"n_epochs": 2}),
    )
    for change in changes:
        assert not all_equal(default, after(**change)), change
    assert all_equal(default, after(clip_range=lambda _: 0.2))


@pytest.mark.traced
def test_a_compiled_step_makes_the_same_update():
    logs, policies = [], []
    for compiled in (False, True):
        model = make_papi(learning_rate=1e-3, compile=compiled)
        logs.append(logs_of(model, 2)[-1])
        policies.append(parameters(model))
    assert model._compiled_steps.keys() == {"actor", "critic"}
    assert all(step.is_compiled for step in model._compiled_steps.values())
    for key in policies[0]:
        th.testing.assert_close(policies[0][key], policies[1][key], rtol=1e-3, atol=1e-5)
    assert logs[1]["trust_region/kl_mean"] == pytest.approx(logs[0]["trust_region/kl_mean"], rel=1e-2)


# --- run ---


def test_the_log(tmp_path):
    model = make_papi(vec_env(2), tensorboard_log=str(tmp_path))
    model.learn(256)
    events = event_file(tmp_path / "PAPI_1")
    keys = {f"trust_region/{key}" for key in ("kl_mean", "kl_max", "entropy", "violation_fraction")}
    keys |= {f"papi/{key}" for key in ("kl_bound", "cov_share", "mean_share", "backtracks", "learning_rate_scale")}
    keys |= {f"train/{key}" for key in ("policy_gradient_loss", "clip_fraction", "value_loss", "std", "learning_rate")}
    assert keys <= set(events.Tags()["scalars"])


def test_it_learns():
    model = make_papi(
        PointEnv((1,)), n_steps=256, n_epochs=5, learning_rate=3e-3, kl_bound=0.05, seed=1, stats_window_size=20
    )
    returns = []
    for steps in (256, 5000):
        model.learn(steps)
        returns.append(np.mean([episode["r"] for episode in model.ep_info_buffer]))
    assert returns[1] > 0.3 * returns[0], "penalties should have fallen to a third"


# --- saving ---


@pytest.mark.parametrize("name", POLICIES)
def test_training_goes_on_as_if_it_had_never_stopped(tmp_path, name):
    model = make_papi(env_for(name), learning_rate=3e-2, **POLICIES[name])
    model.learn(128)
    model._learning_rate_scale = 0.7
    model.save(tmp_path / "model")
    loaded = PAPI.load(tmp_path / "model", env=env_for(name), device="cpu")
    assert all_equal(parameters(model), parameters(loaded))
    loaded._setup_learn(10_000, None)
    for i in range(2):
        collect(model)
        copy_rollout(model, loaded)
        before = parameters(model)
        log, other = update(model, seed=i), update(loaded, seed=i)
        assert all_equal(parameters(model), parameters(loaded))
        assert not all_equal(before, parameters(model))
        assert log["train/learning_rate"] == other["train/learning_rate"] <= 0.7 * 3e-2
    assert loaded._n_updates == model._n_updates


def test_copies_are_independent():
    model = make_papi()
    twin = copy.deepcopy(model.policy)
    model.learn(64)
    assert not all_equal(dict(twin.state_dict()), parameters(model))


# --- errors ---


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kl_bound": 0.0}, "kl_bound=0.0 must be positive"),
        ({"kl_bound": float("nan")}, "kl_bound=nan must be positive"),
        ({"learning_rate_decay": 0.0}, r"learning_rate_decay=0.0 must be in \(0, 1\]"),
        ({"learning_rate_decay": 1.1}, r"learning_rate_decay=1.1 must be in \(0, 1\]"),
        ({"clip_range": "exp_0.2"}, "clip_range='exp_0.2' is no schedule"),
        ({"clip_range": -0.2}, "clip_range=-0.2 .* not negative"),
        ({"learning_rate": "3e-4"}, "learning_rate='3e-4' is no schedule"),
        ({"critic_learning_rate": -1.0}, "critic_learning_rate=-1.0 .* not negative"),
        ({"n_critic_epochs": -1}, "n_critic_epochs=-1 must not be negative"),
        ({"n_epochs": 0}, "n_epochs=0 must be at least 1"),
        ({"batch_size": 1000}, "batch_size=1000 is larger than the rollout"),
        ({"policy_kwargs": {"contextual_std": True}}, "one covariance for all states: contextual_std=True needs"),
        ({"policy_kwargs": SHARED}, "set share_features_extractor=False"),
        ({"policy_kwargs": {"log_std_init": 0}}, "policy_kwargs has 'log_std_init'"),
        ({"policy": ActorCriticPolicy}, "ActorCriticPolicy has no distribution that can be projected"),
        ({"env": "CartPole-v1"}, "PAPI projects Gaussian policies and needs a Box action space"),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_papi(**kwargs)


def test_parameters_that_are_not_finite_stop_training():
    with pytest.raises(FloatingPointError, match=r"not finite after \d+ timesteps. Lower the learning rate"):
        make_papi(learning_rate=1e38, critic_learning_rate=1e38).learn(64 * 5)


def test_means_that_are_not_finite_stop_training():
    """Finite parameters whose output is not."""
    model = make_papi(policy_kwargs={"activation_fn": th.nn.ReLU, "ortho_init": False})
    collect(model)

    def explode(rollout, stats):
        for tensor in model._last_layer() + model._hidden_layers():
            tensor.data.fill_(1e25)
        return [model._hidden_layers()]

    model._improve_policy = explode
    with pytest.raises(FloatingPointError, match=r"divergence from the old one is not finite after 64 timesteps"):
        update(model)


def test_the_zoo_knows_it():
    pytest.importorskip("rl_zoo3")
    from rl_zoo3.utils import ALGOS

    from sb3_trl.zoo import hyperparameter_file, register

    register()
    assert ALGOS["papi"] is PAPI
    text = hyperparameter_file("papi").read_text()
    for env in ("HalfCheetah-v5", "Pendulum-v1", "sb3_trl/ReacherSparse5-v0"):
        assert env in text
        assert env in gym.registry
