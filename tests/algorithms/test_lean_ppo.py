"""LeanPPO learns what SB3's PPO learns: the same updates from the same rollouts, and the same log."""

import inspect

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize
from support import (
    ACTION_SPACES,
    ActionEnv,
    PointEnv,
    Recorder,
    all_equal,
    copy_rollout,
    event_file,
    further,
    parameters,
    update,
    vec_env,
)
from torch import nn

from sb3_trl import LeanPPO, TrustRegionCallback
from sb3_trl.policies.actor_critic import SingleOptimizerPolicy
from sb3_trl.rollouts.collection import can_collect
from sb3_trl.seeds.batch import can_batch
from sb3_trl.study import SeedBatch, Study

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")

#: Three minibatches in an epoch, the last of which is smaller.
SMALL = {"n_steps": 40, "batch_size": 32, "n_epochs": 3, "seed": 0, "device": "cpu", "learning_rate": 3e-3}
ZOO_NETWORK = {
    "log_std_init": -2,
    "ortho_init": False,
    "activation_fn": nn.ReLU,
    "net_arch": {"pi": [256, 256], "vf": [256, 256]},
}


def make(cls: type = LeanPPO, space: str = "box", policy="MlpPolicy", env=None, **kwargs):
    env = vec_env(2, ActionEnv, action_space=ACTION_SPACES[space]) if env is None else env
    return cls(policy, env, **(SMALL | kwargs))


@pytest.fixture
def same_minibatches(monkeypatch):
    """SB3's buffer draws the order of its rows from torch, as this package does."""
    monkeypatch.setattr(np.random, "permutation", lambda n: th.randperm(n).numpy())


def updates_side_by_side(lean: LeanPPO, usual: PPO, n_updates: int = 3) -> None:
    """Update both with the first one's rollouts, and compare what becomes of them."""
    # Schedules do not fall to 0 here: with that clip range, rounding alone decides which ratios are clipped.
    total, callback = lean._setup_learn(2 * n_updates * lean.n_steps * lean.n_envs, None)
    usual._setup_learn(total, None)
    for k in range(n_updates):
        assert lean.collect_rollouts(lean.env, callback, lean.rollout_buffer, lean.n_steps)
        lean._update_current_progress_remaining(lean.num_timesteps, total)
        copy_rollout(lean, usual)
        before = parameters(lean)
        log, expected = update(lean, seed=k), update(usual, seed=k)
        for name, p in parameters(usual).items():
            assert not th.equal(p, before[name]), name
            assert th.allclose(parameters(lean)[name], p, rtol=1e-4, atol=2e-5), name
        assert {key for key in expected if key.startswith("train/")} == {key for key in log if key.startswith("train/")}
        for key, value in expected.items():
            assert log[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


CASES = [
    *[(space, {}) for space in ACTION_SPACES],
    ("box", {"clip_range_vf": 0.05, "clip_range": "lin_0.2"}),
    ("box", {"learning_rate": lambda progress: 3e-3 * progress, "ent_coef": 0.1, "vf_coef": 0.3}),
    ("discrete", {"normalize_advantage": False, "max_grad_norm": 0.05, "ent_coef": 0.1}),
    ("multi_discrete", {"ent_coef": 0.1, "clip_range_vf": "lin_0.1"}),
    ("multi_binary", {"ent_coef": 0.1}),
    ("box", {"batch_size": 79}),  # one state in the last minibatch, whose advantage cannot be normalised
    ("box", {"batch_size": 100}),  # all of the rollout
    ("box", {"policy_kwargs": ZOO_NETWORK, "learning_rate": 2e-5}),
    ("box", {"policy_kwargs": {"share_features_extractor": False}}),
    ("box", {"policy": SingleOptimizerPolicy, "policy_kwargs": {"contextual_std": True}}),
]


def as_sb3_has_it(kwargs: dict) -> dict:
    """Return the arguments with functions for ``"lin_<x>"``, as the RL Zoo gives them to SB3."""

    def linear(start: float):
        return lambda progress: start * progress

    return {
        key: linear(float(value[4:])) if isinstance(value, str) and value.startswith("lin_") else value
        for key, value in kwargs.items()
    }


@pytest.mark.parametrize(("space", "kwargs"), CASES)
def test_updates_are_those_of_sb3(same_minibatches, space, kwargs):
    lean, usual = make(space=space, **kwargs), make(PPO, space, **as_sb3_has_it(kwargs))
    assert all_equal(parameters(lean), parameters(usual)), "one seed, one network"
    assert can_collect(lean)
    assert can_batch(lean)
    updates_side_by_side(lean, usual)


@pytest.mark.traced
@pytest.mark.parametrize(
    ("space", "kwargs"),
    [
        ("box", {"clip_range_vf": "lin_0.2", "clip_range": "lin_0.2", "learning_rate": "lin_3e-3", "ent_coef": 0.01}),
        ("discrete", {}),
        *further(("box", {"policy_kwargs": ZOO_NETWORK, "learning_rate": 2e-5})),
    ],
)
def test_compiled_updates_are_those_of_sb3(same_minibatches, space, kwargs):
    """One function for all updates, whatever the schedules."""
    th._dynamo.utils.counters.clear()
    lean = make(space=space, compile=True, **kwargs)
    updates_side_by_side(lean, make(PPO, space, **as_sb3_has_it(kwargs)))
    assert lean._compiled_steps["update"].is_compiled
    assert th._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(("observation", "policy"), [("dict", "MultiInputPolicy"), ("image", "CnnPolicy")])
def test_observations(same_minibatches, observation, policy):
    small = {"n_steps": 16, "n_epochs": 1, "learning_rate": 1e-4}
    lean, usual = (make(cls, policy=policy, env=vec_env(2, observation=observation), **small) for cls in (LeanPPO, PPO))
    updates_side_by_side(lean, usual, 2)


# --- what SB3 does by itself ---


class OwnPolicy(ActorCriticPolicy):
    """Evaluates actions in a way of its own."""

    def evaluate_actions(self, obs, actions):
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        return 0.5 * values, log_prob, 2 * entropy


class OwnBuffer(RolloutBuffer):
    """Hands out every other state."""

    def get(self, batch_size=None):
        yield from list(super().get(batch_size))[::2]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"target_kl": 1e-3},
        {"use_sde": True},
        {"policy": OwnPolicy, "ent_coef": 0.1},
        {"rollout_buffer_class": OwnBuffer},
    ],
)
def test_what_cannot_be_compiled_is_still_right(same_minibatches, kwargs):
    lean, usual = make(compile=True, **kwargs), make(PPO, **kwargs)
    assert not can_batch(lean)
    updates_side_by_side(lean, usual)
    assert lean._n_updates == usual._n_updates
    if "target_kl" in kwargs:
        assert lean._n_updates < 9, "stopped early"


@pytest.mark.traced
def test_a_target_kl_between_two_trainings(same_minibatches):
    """The compiled step leaves parameters and moments where SB3's find them."""
    lean, usual = make(compile=True, batch_size=40), make(PPO, batch_size=40)
    for target_kl in (None, 0.01, None):
        lean.target_kl = usual.target_kl = target_kl
        updates_side_by_side(lean, usual, 1)


# --- around the update ---


def test_the_arguments_are_those_of_sb3():
    ours, theirs = (list(inspect.signature(cls).parameters.values()) for cls in (LeanPPO, PPO))
    assert [p.name for p in ours if p.name != "compile"] == [p.name for p in theirs]
    defaults = {p.name: p.default for p in theirs}
    assert all(p.default == defaults[p.name] for p in ours if p.name != "compile")
    assert LeanPPO.policy_aliases == PPO.policy_aliases


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"compile": "yes"}, ValueError, "compile='yes' is unknown"),
        ({"n_epochs": 0}, ValueError, "n_epochs=0 must be at least 1"),
        ({"learning_rate": "linear"}, ValueError, "learning_rate='linear' is no schedule"),
        ({"clip_range": "lin_x"}, ValueError, "clip_range='lin_x' is no schedule"),
        ({"clip_range_vf": 0}, AssertionError, "`clip_range_vf` must be positive"),
        ({"policy_kwargs": {"log_std": 0}}, ValueError, "did you mean 'log_std_init'"),
    ],
)
def test_bad_input(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


def test_divergence_is_an_error():
    with pytest.raises(FloatingPointError, match="not finite after"):
        make(learning_rate=1e30, max_grad_norm=1e9).learn(160)


def test_continuing_a_saved_model_makes_the_same_update(tmp_path):
    model = make(clip_range="lin_0.3", compile=False).learn(160)
    model.save(tmp_path / "model")
    loaded = LeanPPO.load(tmp_path / "model", env=model.env, device="cpu")
    assert (loaded.compile, loaded.clip_range(0.5)) == (False, 0.15)
    other = make(seed=5)
    other.set_parameters(tmp_path / "model.zip")
    assert all_equal(parameters(other), parameters(model))
    logs = []
    for m in (model, loaded):
        m.rollout_buffer, m._logger = model.rollout_buffer, model.logger
        logs.append(update(m, seed=3))
    for name, p in parameters(model).items():
        assert th.allclose(parameters(loaded)[name], p, rtol=1e-5, atol=1e-6), name
    assert logs[0]["train/loss"] == pytest.approx(logs[1]["train/loss"], rel=1e-4)


def test_files_are_exchanged_with_sb3(tmp_path):
    lean, usual = make().learn(80), make(PPO, seed=1).learn(80)
    for cls, source in ((PPO, lean), (LeanPPO, usual)):
        source.save(tmp_path / "model")
        loaded = cls.load(tmp_path / "model", env=source.env, device="cpu")
        assert all_equal(parameters(loaded), parameters(source))
        loaded.learn(80, reset_num_timesteps=False)


def test_the_trust_region_is_logged_by_the_callback(tmp_path):
    keys = {"trust_region/kl_mean", "trust_region/kl_max", "trust_region/entropy"}
    make(tensorboard_log=str(tmp_path)).learn(240, callback=TrustRegionCallback())
    events = event_file(tmp_path / "LeanPPO_1")
    logged = set(events.Tags()["scalars"])
    assert {key for key in logged if key.startswith("trust_region/")} == keys
    assert len(events.Scalars("trust_region/kl_max")) == 2, "after every update but the last, as for PPO"
    assert len(events.Tensors("custom_scalars__config__")) == 1, "one dashboard"
    assert "train/clip_fraction" in logged
    assert not {"train/clip_range_vf", "train/n_updates"} & logged

    make(tensorboard_log=str(tmp_path)).learn(80)
    alone = event_file(tmp_path / "LeanPPO_2").Tags()
    assert not keys & set(alone["scalars"])
    assert "custom_scalars__config__" not in alone["tensors"]


def test_the_divergence_is_that_of_ppo(same_minibatches, monkeypatch):
    """With SB3's rollouts for both, whole trainings have the same logs."""
    monkeypatch.setattr("sb3_trl.algorithms.collecting.can_collect", lambda _: False)
    logs = []
    for cls in (LeanPPO, PPO):
        recorder = Recorder()
        make(cls).learn(400, callback=[TrustRegionCallback(), recorder])
        logs.append(recorder.logs)
    assert len(logs[0]) == len(logs[1]) > 3
    for log, expected in zip(*logs, strict=True):
        for key in {*expected} - {"time/fps", "time/time_elapsed"}:
            assert log[key] == pytest.approx(expected[key], rel=1e-2, abs=1e-4), key


def test_it_learns():
    model = make(env=PointEnv((1,)), n_steps=256, n_epochs=5, seed=1, stats_window_size=20)
    returns = []
    for _ in range(2):
        model.learn(256 if not returns else 3000)
        returns.append(np.mean([episode["r"] for episode in model.ep_info_buffer]))
    assert returns[1] > 0.3 * returns[0], "penalties should have fallen to a third"


# --- seeds side by side ---


def normalized(seed: int) -> VecNormalize:
    return VecNormalize(make_vec_env(lambda: PointEnv(length=7), 2, seed=seed))


@pytest.mark.traced
@pytest.mark.parametrize(
    ("env", "kwargs", "compile"),
    [
        (normalized, {"clip_range_vf": "lin_0.2", "learning_rate": "lin_1e-3"}, False),
        (normalized, {"policy_kwargs": ZOO_NETWORK, "learning_rate": 2e-5}, False),
        ("CartPole-v1", {"ent_coef": 0.01}, False),
        (normalized, {"policy_kwargs": ZOO_NETWORK, "learning_rate": 2e-5, "batch_size": 40}, True),
    ],
)
def test_every_seed_learns_what_it_learns_alone(env, kwargs, compile):
    seeds, options = [3, 4, 5], {key: value for key, value in SMALL.items() if key != "seed"} | kwargs
    recorders = {seed: Recorder() for seed in seeds}
    batch = SeedBatch(LeanPPO, "MlpPolicy", env, seeds, compile=compile, **options)
    batch.learn(240, lambda model: [TrustRegionCallback(), recorders[model.seed]])
    for seed, model in zip(seeds, batch.models, strict=True):
        recorder = Recorder()
        own = env(seed) if callable(env) else gym.make(env)
        alone = LeanPPO("MlpPolicy", own, seed=seed, compile=False, **options)
        alone.learn(240, callback=[TrustRegionCallback(), recorder])
        for name, p in parameters(alone).items():
            assert th.allclose(parameters(model)[name], p, rtol=1e-3, atol=1e-4), name
        assert len(recorder.logs) == len(recorders[seed].logs) > 1
        for log, expected in zip(recorders[seed].logs, recorder.logs, strict=True):
            for key in {*expected} - {"time/fps", "time/time_elapsed"}:
                assert log[key] == pytest.approx(expected[key], rel=2e-2, abs=1e-3), key
    assert not all_equal(*(parameters(model) for model in batch.models[:2]))


def test_a_batch_needs_updates_of_its_own():
    with pytest.raises(ValueError, match=r"cannot be mapped over seeds: .* without gSDE or target_kl"):
        SeedBatch(LeanPPO, "MlpPolicy", "Pendulum-v1", [1, 2], target_kl=0.1)


def test_a_study_trains_seeds_together_and_logs_what_ppo_logs(tmp_path):
    params = "{n_steps: 64, batch_size: 32, n_epochs: 2}"
    (tmp_path / "small.yml").write_text(
        "tasks: [Pendulum-v1]\nseeds: 4\nn_timesteps: 192\neval_freq: 96\nn_eval_episodes: 1\nmethods:\n"
        f"  Lean: {{algo: lean_ppo, conf_file: ppo_paper.yml, params: {params}}}\n"
        f"  SB3: {{algo: ppo, conf_file: ppo_paper.yml, params: {params}}}\n"
    )
    study = Study.load(tmp_path / "small.yml", tmp_path / "out")
    assert [len(job.runs) for job in study.jobs(seed_batch=True)] == [4, 1, 1, 1, 1]
    assert study.run(jobs=1, seed_batch=True) == []
    rows = study.results().set_index("algorithm")
    assert rows.groupby(level=0).size().to_dict() == {"lean_ppo": 8, "ppo": 8}
    filled = [set(own.columns[own.notna().all()]) for _, own in rows.groupby(level=0)]
    assert filled[0] == filled[1] >= {"kl_mean", "kl_spread", "kl_max", "entropy", "std"}
    assert (rows.kl_mean > 0).all()
    assert np.allclose(rows.entropy, 0.5 * np.log(2 * np.pi * np.e * rows["std"] ** 2), atol=0.01)
