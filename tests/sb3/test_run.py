"""TRPL as SB3's users run it: callbacks, logs, seeds, processes; and it learns."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
from support import (
    KINDS,
    SHARED,
    PointEnv,
    Recorder,
    all_equal,
    event_file,
    make_model,
    parameters,
    train_and_record,
    vec_env,
)

from sb3_trl import TRPL, StateBound

FULL = {"covariance": "full", "contextual_std": True}

TRUST_REGION_KEYS = {
    f"trust_region/{key}"
    for key in (
        *("kl_mean", "kl_max", "kl_bound", "mean_bound", "cov_bound"),
        *("entropy", "violation_fraction", "projected_fraction"),
        *("mean_distance_mean", "mean_distance_max", "cov_distance_mean", "cov_distance_max"),
    )
}
TRAIN_KEYS = {
    f"train/{key}"
    for key in (
        *("learning_rate", "critic_learning_rate", "policy_gradient_loss", "trust_region_loss", "value_loss"),
        *("explained_variance", "std"),
    )
}


class Counter(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def _count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def _on_training_start(self) -> None:
        self._count("training_start")

    def _on_rollout_start(self) -> None:
        self._count("rollout_start")

    def _on_step(self) -> bool:
        self._count("step")
        return True

    def _on_rollout_end(self) -> None:
        self._count("rollout_end")

    def _on_training_end(self) -> None:
        self._count("training_end")


def test_callbacks_are_called():
    for n_envs in (1, 2):
        callback = Counter()
        model = make_model(vec_env(n_envs))
        model.learn(3 * 64 * n_envs, callback=callback)
        assert callback.calls == {
            "training_start": 1,
            "rollout_start": 3,
            "step": 3 * 64,
            "rollout_end": 3,
            "training_end": 1,
        }


def test_a_function_or_a_list_as_callback():
    seen, counter = [], Counter()

    def stop_early(locals_, globals_) -> bool:
        seen.append(locals_["n_steps"])
        return len(seen) < 10

    assert make_model().learn(128, callback=stop_early).num_timesteps == 10
    assert seen == list(range(10))
    make_model().learn(64, callback=[counter, Recorder()])
    assert counter.calls["step"] == 64


def test_a_callback_can_stop_training():
    model = make_model()
    model.learn(10_000, callback=StopTrainingOnMaxEpisodes(max_episodes=2))
    assert model.num_timesteps == 20


def test_progress_bar(capsys):
    model = make_model()
    assert model.learn(128, progress_bar=True) is model
    assert model.num_timesteps == 128
    captured = capsys.readouterr()
    assert "128/128" in captured.out + captured.err


def test_eval_callback_keeps_the_best_model(tmp_path):
    env = VecNormalize(vec_env(2))
    eval_env = VecNormalize(vec_env(1), training=False, norm_reward=False)
    callback = EvalCallback(
        eval_env, best_model_save_path=str(tmp_path), log_path=str(tmp_path), eval_freq=50, n_eval_episodes=2, verbose=0
    )
    model = make_model(env)
    model.learn(256, callback=callback)
    results = np.load(tmp_path / "evaluations.npz")
    assert results["timesteps"].tolist() == [100, 200]
    assert results["results"].shape == (2, 2)
    assert callback.best_mean_reward == results["results"].mean(1).max()
    assert isinstance(TRPL.load(tmp_path / "best_model"), TRPL)
    assert 200 <= eval_env.obs_rms.count < env.obs_rms.count  # of the moment of the last evaluation


def test_checkpoints_can_be_loaded(tmp_path):
    model = make_model()
    model.learn(128, callback=CheckpointCallback(64, str(tmp_path), name_prefix="model"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_128_steps.zip", "model_64_steps.zip"]
    assert TRPL.load(tmp_path / "model_64_steps").num_timesteps == 64


def test_the_log(tmp_path):
    logs = train_and_record(make_model(), 3)
    for log in logs:
        assert log.keys() >= TRUST_REGION_KEYS | TRAIN_KEYS
    assert [log["train/n_updates"] for log in logs] == [2, 4, 6]


def test_tensorboard(tmp_path):
    model = make_model(tensorboard_log=str(tmp_path))
    model.learn(256)
    model.learn(128, reset_num_timesteps=False)
    model.learn(64)
    model.learn(64, tb_log_name="another")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["TRPL_1", "TRPL_2", "another_1"]
    events = event_file(tmp_path / "TRPL_1")
    keys = set(events.Tags()["scalars"])
    assert keys >= TRUST_REGION_KEYS | TRAIN_KEYS | {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps"}
    assert "train/n_updates" not in keys
    steps = sorted(event.step for event in events.Scalars("rollout/ep_rew_mean"))  # files are read in any order
    assert steps == [64, 128, 192, 256, 320, 384]


def test_a_logger_of_ones_own(tmp_path):
    model = make_model()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(192)
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    assert set(header) >= TRUST_REGION_KEYS


def test_the_console(capsys):
    make_model(verbose=1).learn(128)
    printed = capsys.readouterr().out
    assert "trust_region/" in printed
    for key in ("kl_mean", "violation_fraction", "ep_rew_mean", "explained_variance"):
        assert key in printed
    make_model(verbose=0).learn(128)
    assert capsys.readouterr().out == ""


def test_training_continues_where_it_stopped():
    rates = []
    model = make_model(learning_rate=lambda p: rates.append(p) or 1e-4)
    model.learn(128)
    assert model.num_timesteps == 128
    rates.clear()
    model.learn(128, reset_num_timesteps=False)
    assert model.num_timesteps == 256
    assert model._n_updates == 4 * model.n_epochs
    assert rates == [pytest.approx(0.25), 0.0]
    model.learn(64)
    assert model.num_timesteps == 64


CONFIGURATIONS = {
    "kl": {},
    "w2, full": {"projection": "w2", "policy_kwargs": {"covariance": "full"}},
    "frobenius, full contextual": {"projection": "frobenius", "policy_kwargs": FULL},
    "joint": {"projection": "joint_kl"},
    "entropy": {"entropy_schedule": "exp"},
    "shared": {"policy_kwargs": SHARED},
    "hard": {"hard": True, "learning_rate": 1e-2},
}


@pytest.mark.parametrize("kwargs", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_the_seed_decides(kwargs):
    def train(seed: int) -> dict[str, th.Tensor]:
        model = make_model(vec_env(2), seed=seed, **kwargs)
        model.learn(256)
        return parameters(model)

    first, again, other = train(1), train(1), train(2)
    assert all_equal(first, again)
    assert not all_equal(first, other)


def test_processes_of_their_own():
    env = SubprocVecEnv([PointEnv, PointEnv], start_method="fork")
    model = make_model(env, n_steps=16, batch_size=16)
    try:
        logs = train_and_record(model, 2)
    finally:
        env.close()
    assert logs[-1]["trust_region/kl_mean"] > 0


def test_evaluate_policy():
    mean, std = evaluate_policy(make_model(), PointEnv(), n_eval_episodes=3, warn=False)
    assert mean < 0
    assert std > 0


@pytest.mark.parametrize("bound", [0.02, "lin_0.02", lambda p: 0.02, StateBound(lambda obs: 0.02 + 0 * obs[:, 0])])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_bound_with_every_projection(kind, bound):
    (log,) = train_and_record(make_model(projection=kind, mean_bound=bound), 1)
    # One rollout is all of this training: a schedule is at its end.
    expected = 0.0 if bound == "lin_0.02" else 0.02
    assert log["trust_region/mean_bound"] == pytest.approx(expected, rel=1e-6, abs=1e-9)


# --- it learns ---


def mean_reward(model: TRPL) -> float:
    env = PointEnv(shape=(2,), length=1)
    env.reset(seed=123)
    return evaluate_policy(model, env, n_eval_episodes=100, deterministic=True, warn=False)[0]


@pytest.mark.parametrize(
    "kwargs",
    [
        *({"projection": kind} for kind in KINDS),
        {"policy_kwargs": FULL},
        {"policy_kwargs": SHARED},
        {"hard": True},
        {"trust_region_coef": 0.0, "n_regression_epochs": 4},
    ],
    ids=lambda kwargs: ", ".join(map(str, kwargs)) + str(kwargs.get("projection", "")),
)
def test_learns(kwargs):
    settings = {"n_steps": 128, "batch_size": 64, "n_epochs": 5, "n_critic_epochs": 5, "mean_bound": 0.6}
    settings |= {"learning_rate": 6e-3, "critic_learning_rate": 6e-3, "cov_bound": 0.02} | kwargs
    settings["policy_kwargs"] = {"init_std": 0.3} | settings.get("policy_kwargs", {})
    model = make_model(vec_env(2, shape=(2,), length=1), **settings)
    # A policy that knows nothing loses the variance of the goals, 2/3; the best one nothing.
    assert mean_reward(model) < -0.6
    model.learn(6 * 256)
    assert mean_reward(model) > -0.05
