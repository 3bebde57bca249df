"""Seeds side by side learn what each learns alone."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize
from support import LinearExtractor, PointEnv, Recorder, Uncompiled, all_equal, event_file, further, parameters

from sb3_trl import PAPI, TRPL, FixPO, LeanPPO, SeedBatch
from sb3_trl.seeds import lockstep

SEEDS = [3, 4, 5]
OPTIONS = {"n_steps": 40, "batch_size": 32, "n_epochs": 2, "device": "cpu"}
TRPL_OPTIONS = OPTIONS | {"n_critic_epochs": 2, "learning_rate": 1e-3}
FIXPO_OPTIONS = OPTIONS | {"learning_rate": 1e-2, "kl_bound": 0.02}


def normalized(seed: int) -> VecNormalize:
    """Two environments, whose episodes end in the middle of rollouts."""
    return VecNormalize(make_vec_env(lambda: PointEnv(length=7), 2, seed=seed))


def alone(algorithm, seed: int, env, **kwargs):
    own = env(seed) if callable(env) else gym.make(env)
    return algorithm("MlpPolicy", own, seed=seed, compile=False, **kwargs)


class StopAt(BaseCallback):
    """Stops training after some steps."""

    def __init__(self, timesteps: int | None) -> None:
        super().__init__()
        self.timesteps = timesteps

    def _on_step(self) -> bool:
        return self.timesteps is None or self.num_timesteps < self.timesteps


@pytest.mark.parametrize(
    ("algorithm", "env", "kwargs"),
    [
        (TRPL, "Pendulum-v1", TRPL_OPTIONS),
        (TRPL, normalized, TRPL_OPTIONS),
        (TRPL, normalized, TRPL_OPTIONS | {"projection": "w2", "policy_kwargs": {"contextual_std": True}}),
        (TRPL, normalized, TRPL_OPTIONS | {"projection": "frobenius", "entropy_schedule": "linear"}),
        (TRPL, normalized, TRPL_OPTIONS | {"max_grad_norm": 0.1, "hard": True, "n_regression_epochs": 1}),
        (FixPO, normalized, FIXPO_OPTIONS | {"clip_range_vf": 0.2}),
        (FixPO, "CartPole-v1", FIXPO_OPTIONS),
    ],
)
def test_every_seed_learns_what_it_learns_alone(algorithm, env, kwargs, monkeypatch):
    """Parameters, moments and logs of some updates; the last minibatch of each epoch is smaller than the others."""
    monkeypatch.setattr(lockstep, "Compiled", Uncompiled)
    monkeypatch.setattr(algorithm, "_compiled_evaluation", lambda *_: None)
    recorders = {}

    def callback(model) -> Recorder:
        return recorders.setdefault(model.seed, Recorder())

    batch = SeedBatch(algorithm, "MlpPolicy", env, SEEDS, **kwargs).learn(160, callback)
    for seed, model in zip(SEEDS, batch.models, strict=True):
        recorder = Recorder()
        single = alone(algorithm, seed, env, **kwargs).learn(160, recorder)
        assert model.num_timesteps == single.num_timesteps
        for name, p in parameters(single).items():
            assert th.allclose(parameters(model)[name], p, rtol=1e-4, atol=1e-5), name
        moments = single.policy.optimizer.state_dict()["state"]
        for index, state in model.policy.optimizer.state_dict()["state"].items():
            assert state["step"] == moments[index]["step"]
            assert th.allclose(state["exp_avg_sq"], moments[index]["exp_avg_sq"], rtol=1e-2, atol=1e-6)
        assert len(recorder.logs) == len(recorders[seed].logs) > 1
        for log, expected in zip(recorders[seed].logs, recorder.logs, strict=True):
            times = {"time/fps", "time/time_elapsed"}
            assert {*log} - times == {*expected} - times
            for key in {*expected} - times:
                assert log[key] == pytest.approx(expected[key], rel=1e-2, abs=1e-4), key
        if isinstance(env, str):
            continue
        assert np.allclose(model.env.obs_rms.mean, single.env.obs_rms.mean, rtol=1e-5)
        assert np.allclose(model.env.ret_rms.var, single.env.ret_rms.var, rtol=1e-4)
    assert not all_equal(*(parameters(model) for model in batch.models[:2]))


def odd(n_envs: int):
    """Environments whose numbers do not fill a vector."""
    return lambda seed: make_vec_env(lambda: PointEnv(shape=(3,), length=7), n_envs, seed=seed)


CONTEXTUAL = TRPL_OPTIONS | {"projection": "w2", "policy_kwargs": {"contextual_std": True}}
ODD_NETWORK = {"net_arch": [7, 33], "activation_fn": th.nn.ELU, "contextual_std": True}


@pytest.mark.parametrize(
    ("algorithm", "env", "compile", "kwargs"),
    [
        (TRPL, normalized, False, TRPL_OPTIONS),
        (TRPL, normalized, False, CONTEXTUAL),
        (TRPL, odd(1), False, CONTEXTUAL | {"policy_kwargs": ODD_NETWORK}),
        (TRPL, odd(3), False, CONTEXTUAL | {"policy_kwargs": ODD_NETWORK}),
        (PAPI, normalized, False, OPTIONS),
        (FixPO, normalized, False, FIXPO_OPTIONS),
        (FixPO, "CartPole-v1", False, FIXPO_OPTIONS | {"policy_kwargs": {"net_arch": [7, 33]}}),
        (LeanPPO, normalized, False, OPTIONS),
        *further((LeanPPO, normalized, True, OPTIONS | {"n_steps": 48})),
    ],
)
def test_a_seed_learns_the_same_in_any_batch(algorithm, env, compile, kwargs):
    """To the last digit: in a batch of itself, of two, of five, first or last, and when another one is stopped."""

    def learned(seeds, callback=None) -> dict[str, th.Tensor]:
        batch = SeedBatch(algorithm, "MlpPolicy", env, seeds, compile, **kwargs).learn(120, callback)
        model = batch.models[seeds.index(SEEDS[0])]
        return parameters(model) | {"actions": th.as_tensor(model.rollout_buffer.actions)}

    def stops_others(model) -> StopAt:
        return StopAt(None if model.seed == SEEDS[0] else 90)

    expected = learned(SEEDS[:1])
    assert all_equal(expected, learned(SEEDS, stops_others))
    if not compile:  # test_lockstep.py has compiled steps of any seeds
        assert all_equal(expected, learned(SEEDS))
        assert all_equal(expected, learned(SEEDS[:2]))
        assert all_equal(expected, learned([6, 7, *reversed(SEEDS)]))


@pytest.mark.traced
@pytest.mark.parametrize(
    ("algorithm", "kwargs", "n_graphs"),
    [
        (FixPO, FIXPO_OPTIONS, 3),  # its step of two sizes, and the divergence once for all seeds
        *further((TRPL, TRPL_OPTIONS, 4)),  # actor and critic
    ],
)
def test_compiled(algorithm, kwargs, n_graphs):
    """Each kind of step is compiled once for each size of minibatch, in the first update."""
    th._dynamo.utils.counters.clear()
    batch = SeedBatch(algorithm, "MlpPolicy", normalized, SEEDS, **kwargs).learn(320)
    assert th._dynamo.utils.counters["stats"]["unique_graphs"] == n_graphs
    for seed, model in zip(SEEDS, batch.models, strict=True):
        single = alone(algorithm, seed, normalized, **kwargs).learn(320)
        for name, p in parameters(single).items():
            assert th.allclose(parameters(model)[name], p, rtol=1e-3, atol=1e-4), name


def test_models_are_saved_and_loaded_like_any_other(tmp_path):
    batch = SeedBatch(TRPL, "MlpPolicy", "Pendulum-v1", SEEDS, compile=False, **TRPL_OPTIONS).learn(80)
    for model in batch.models:
        model.save(tmp_path / "model")
        loaded = TRPL.load(tmp_path / "model", env=gym.make("Pendulum-v1"), device="cpu")
        assert all_equal(parameters(loaded), parameters(model))
        loaded.learn(40, reset_num_timesteps=False)


def test_training_continues():
    """Two calls of learn are one, as they are for a model alone."""
    batch = SeedBatch(FixPO, "MlpPolicy", "CartPole-v1", SEEDS, compile=False, **FIXPO_OPTIONS)
    batch.learn(80).learn(80, reset_num_timesteps=False)
    for seed, model in zip(SEEDS, batch.models, strict=True):
        single = alone(FixPO, seed, "CartPole-v1", **FIXPO_OPTIONS)
        single.learn(80).learn(80, reset_num_timesteps=False)
        assert model.num_timesteps == 160
        for name, p in parameters(single).items():
            assert th.allclose(parameters(model)[name], p, rtol=1e-4, atol=1e-5), name


def test_a_callback_stops_its_model_alone():
    def callback(model) -> StopAt:
        return StopAt(50 if model.seed == 4 else None)

    batch = SeedBatch(TRPL, "MlpPolicy", "Pendulum-v1", SEEDS, compile=False, **TRPL_OPTIONS).learn(120, callback)
    assert [model.num_timesteps for model in batch.models] == [120, 50, 120]
    for seed, model in zip(SEEDS, batch.models, strict=True):
        single = alone(TRPL, seed, "Pendulum-v1", **TRPL_OPTIONS).learn(120, callback(model))
        assert single.num_timesteps == model.num_timesteps
        for name, p in parameters(single).items():
            assert th.allclose(parameters(model)[name], p, rtol=1e-4, atol=1e-5), name


def test_every_seed_has_a_tensorboard_run(tmp_path):
    options = TRPL_OPTIONS | {"tensorboard_log": str(tmp_path)}
    SeedBatch(TRPL, "MlpPolicy", "Pendulum-v1", SEEDS, compile=False, **options).learn(80)
    for seed in SEEDS:
        scalars = event_file(tmp_path / f"TRPL_seed{seed}_1").Tags()["scalars"]
        assert "trust_region/kl_mean" in scalars


def test_the_callers_random_numbers_are_left_alone():
    batch = SeedBatch(TRPL, "MlpPolicy", "Pendulum-v1", SEEDS, compile=False, **TRPL_OPTIONS)
    th.manual_seed(7)
    before = th.get_rng_state()
    batch.learn(80)
    assert th.equal(th.get_rng_state(), before)


class Bars:
    """Stands in for the bars of tqdm."""

    def __init__(self, monkeypatch) -> None:
        self.open, self.totals, self.steps = 0, [], 0
        monkeypatch.setattr("tqdm.rich.tqdm", self)

    def __call__(self, total: int) -> "Bars":
        self.totals.append(total)
        return self

    def __enter__(self) -> "Bars":
        self.open += 1
        return self

    def __exit__(self, *_) -> None:
        self.open -= 1

    def update(self, n: int) -> None:
        assert self.open == 1
        self.steps += n


def test_one_progress_bar_for_all(monkeypatch):
    """It is closed even if training fails."""
    bars = Bars(monkeypatch)
    batch = SeedBatch(TRPL, "MlpPolicy", normalized, SEEDS, compile=False, **TRPL_OPTIONS)
    batch.learn(80, progress_bar=True)
    assert (bars.totals, bars.steps, bars.open) == ([240], 240, 0)
    monkeypatch.setattr(batch.models[1], "_improve_policy", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        batch.learn(80, progress_bar=True, reset_num_timesteps=False)
    assert (bars.totals, bars.steps, bars.open) == ([240, 240], 480, 0)


def test_a_progress_bar_is_shown(capsys):
    SeedBatch(TRPL, "MlpPolicy", "Pendulum-v1", [1, 2], compile=False, **TRPL_OPTIONS).learn(40, progress_bar=True)
    assert "80/80" in capsys.readouterr().out


class SuccessEnv(PointEnv):
    """Is a success in its first episode alone."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        self.episodes = getattr(self, "episodes", 0) + truncated
        return observation, reward, terminated, truncated, info | {"is_success": self.episodes == 1}


def test_successes_of_every_seed_are_logged(monkeypatch):
    logged = []
    monkeypatch.setattr(Logger, "record", lambda _, key, value, **__: logged.append((key, value)))
    batch = SeedBatch(
        TRPL, "MlpPolicy", lambda seed: SuccessEnv(length=10 * seed), [1, 2], compile=False, **TRPL_OPTIONS
    )
    batch.learn(80)
    rates = [value for key, value in logged if key == "rollout/success_rate"]
    assert rates == [1 / 4, 1 / 2, 1 / 8, 1 / 4], "of both seeds, at the end of each rollout"


@pytest.mark.parametrize(("timesteps", "learned"), [(0, 0), (-5, 0), (1, 40), (41.5, 80)])
def test_timesteps_as_in_sb3(timesteps, learned):
    batch = SeedBatch(TRPL, "MlpPolicy", "Pendulum-v1", [1, 2], compile=False, **TRPL_OPTIONS).learn(timesteps)
    assert [model.num_timesteps for model in batch.models] == [learned, learned]


BATCH_NORM = {
    "policy_kwargs": {
        "features_extractor_class": LinearExtractor,
        "features_extractor_kwargs": {"batch_norm": True},
    }
}


class Scaled(th.nn.Tanh):
    """Scales by a number that is not trained."""

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("scale", th.tensor(scale))

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.scale * super().forward(x)


def test_numbers_that_are_not_trained(monkeypatch):
    """Frozen parameters and buffers are every seed's own, in a joint step too."""
    monkeypatch.setattr(lockstep, "Compiled", Uncompiled)
    trained = []
    for compile in (True, False):
        kwargs = {"activation_fn": Scaled}
        batch = SeedBatch(TRPL, "MlpPolicy", "Pendulum-v1", [1, 2], compile, policy_kwargs=kwargs, **TRPL_OPTIONS)
        batch.models[1].policy.mlp_extractor.policy_net[1].scale.fill_(0.6)
        for model in batch.models:
            model.policy.mlp_extractor.policy_net[2].requires_grad_(False)
        trained.append([parameters(model) for model in batch.learn(80).models])
    for mapped, alone in zip(*trained, strict=True):
        assert all(th.allclose(mapped[name], alone[name], rtol=1e-4, atol=1e-6) for name in alone)


def test_layers_that_cannot_be_mapped_train_without_compilation():
    batch = SeedBatch(TRPL, "MlpPolicy", "Pendulum-v1", [1, 2], compile=False, **TRPL_OPTIONS, **BATCH_NORM).learn(40)
    means = [model.policy.pi_features_extractor.layers[-1].running_mean for model in batch.models]
    assert not th.equal(*means), "each its own"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"seed": 3}, "seed is not an argument of a SeedBatch"),
        ({"policy_kwargs": {"covariance": "full"}}, "cannot be mapped over seeds"),
        ({"policy_kwargs": {"optimizer_class": th.optim.SGD}}, "cannot be mapped over seeds"),
        ({"policy_kwargs": {"activation_fn": th.nn.Dropout}}, "Dropout: layers that draw .*set compile=False"),
        (BATCH_NORM, "BatchNorm1d: layers that .*keep statistics in training"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SeedBatch(TRPL, "MlpPolicy", "Pendulum-v1", [1, 2], **(TRPL_OPTIONS | kwargs))
