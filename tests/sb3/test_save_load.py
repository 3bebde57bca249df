"""A model that was saved trains on as if it had never stopped."""

import copy
import inspect
import io
import subprocess
import sys

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize
from support import (
    SHARED,
    PointEnv,
    all_equal,
    collect,
    copy_rollout,
    make_model,
    parameters,
    train_and_record,
    update,
    vec_env,
)

from sb3_trl import PAPI, TRPL, StateBound
from sb3_trl.projections import WassersteinProjection

FULL = {"covariance": "full", "contextual_std": True}

CONFIGURATIONS = {
    "default": {},
    "contextual": {"policy_kwargs": {"contextual_std": True}, "projection": "frobenius"},
    "full": {"policy_kwargs": {"covariance": "full"}, "projection": "w2"},
    "full contextual": {"policy_kwargs": FULL, "projection": "joint_kl"},
    "shared": {"policy_kwargs": SHARED},
    "shared full": {"policy_kwargs": SHARED | FULL},
    "entropy": {"entropy_schedule": "exp", "target_entropy": -0.5, "entropy_equality": True},
    "entropy linear": {"entropy_schedule": "linear", "target_entropy": 1.5, "entropy_first": True},
    "schedules": {"learning_rate": "lin_1e-3", "critic_learning_rate": lambda p: 1e-3 * p, "mean_bound": "lin_0.1"},
    "state bound": {"mean_bound": StateBound(lambda obs: 0.02 + 0.01 * obs[:, 0].abs())},
    "regression": {"n_regression_epochs": 2, "trust_region_coef": 0.0},
    "hard": {"hard": True, "learning_rate": 1e-2, "max_hard_steps": 3},
    "no projection": {"projection": None, "max_grad_norm": 0.5},
    "images": {"policy": "CnnPolicy", "policy_kwargs": {"features_extractor_kwargs": {"features_dim": 8}}},
    "dicts": {"policy": "MultiInputPolicy"},
}
every_configuration = pytest.mark.parametrize("name", CONFIGURATIONS)


def env_for(name: str):
    return vec_env(2, observation={"images": "image", "dicts": "dict"}.get(name, "box"))


def trained(name: str) -> TRPL:
    model = make_model(env_for(name), **({"learning_rate": 1e-3, "n_steps": 32} | CONFIGURATIONS[name]))
    model.learn(128)
    return model


def optimisers(model: TRPL) -> list[th.Tensor]:
    both = [model.policy.optimizer, model.policy.critic_optimizer]
    states = [o.state_dict()["state"] for o in both if o is not None]
    return [th.as_tensor(x) for state in states for entry in state.values() for x in entry.values()]


def check_same_future(model: TRPL, other: TRPL, updates: int = 2) -> None:
    """Given the same rollouts both models take the same steps, to the last bit."""
    other._setup_learn(10_000, None)
    for i in range(updates):
        collect(model)
        copy_rollout(model, other)
        before = parameters(model)
        log, other_log = update(model, seed=i), update(other, seed=i)
        assert all_equal(parameters(model), parameters(other))
        assert not all_equal(before, parameters(model))
        for mine, its in zip(optimisers(model), optimisers(other), strict=True):
            assert th.equal(mine, its)
        differ = {key for key in log if key.startswith("tr") and not np.array_equal(log[key], other_log[key])}
        assert differ <= {"train/n_updates", "trust_region/rollbacks"}


@every_configuration
def test_training_goes_on_as_if_it_had_never_stopped(tmp_path, name):
    model = trained(name)
    model.save(tmp_path / "model")
    loaded = TRPL.load(tmp_path / "model", env=env_for(name), device="cpu")
    assert all_equal(parameters(model), parameters(loaded))
    assert (loaded._n_updates, loaded.num_timesteps) == (model._n_updates, model.num_timesteps)
    check_same_future(model, loaded)
    assert loaded._n_updates == model._n_updates
    assert loaded._rollbacks == model._rollbacks


@every_configuration
def test_parameters_hold_all_that_training_needs(name):
    model = trained(name)
    kwargs = {"learning_rate": 1e-3, "n_steps": 32} | CONFIGURATIONS[name]
    other = make_model(env_for(name), **(kwargs | {"seed": 5}))
    assert not all_equal(parameters(model), parameters(other))
    other.set_parameters(copy.deepcopy(model.get_parameters()))
    check_same_future(model, other)


@every_configuration
def test_every_argument_is_saved(tmp_path, name):
    model = make_model(env_for(name), **CONFIGURATIONS[name])
    model.save(tmp_path / "model")
    loaded = TRPL.load(tmp_path / "model", device="cpu")
    arguments = inspect.signature(TRPL.__init__).parameters.keys() - {"self", "policy", "env", "_init_setup_model"}
    for argument in arguments - {"stats_window_size"}:
        given, kept = getattr(model, argument), getattr(loaded, argument)
        if callable(given) and not isinstance(given, type):
            assert type(given) is type(kept)
        else:
            assert given == kept, argument
    assert type(loaded.policy) is type(model.policy)


@pytest.mark.parametrize("shared", [False, True])
def test_names_of_the_parameters(shared):
    model = make_model(policy_kwargs=SHARED if shared else {})
    expected = {"policy", "policy.optimizer", "trust_region_layer", "policy.critic_optimizer"}
    assert model.get_parameters().keys() == expected - ({"policy.critic_optimizer"} if shared else set())


def test_both_optimisers_are_restored():
    model = make_model(learning_rate=1e-3)
    model.learn(64)
    buffer = io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    loaded = TRPL.load(buffer, env=PointEnv(), device="cpu")
    for name in ("optimizer", "critic_optimizer"):
        mine = getattr(model.policy, name).state_dict()["state"]
        its = getattr(loaded.policy, name).state_dict()["state"]
        assert mine.keys() == its.keys()
        assert len(mine) > 0
        for key, entry in mine.items():
            assert all(th.equal(entry[k], its[key][k]) for k in ("step", "exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_a_projected_scale_is_restored_exactly(tmp_path, covariance):
    model = make_model(learning_rate=1e-2, policy_kwargs={"covariance": covariance})
    model.learn(192)
    model.save(tmp_path / "model")
    loaded = TRPL.load(tmp_path / "model", device="cpu")
    observations = th.zeros(2, 3)
    scale = model.policy.gaussian(observations).scale
    assert th.equal(scale, loaded.policy.gaussian(observations).scale)
    assert not th.equal(scale, make_model().policy.gaussian(observations).scale)


def test_the_initial_entropy_is_restored(tmp_path):
    model = make_model(entropy_schedule="exp", policy_kwargs={"init_std": 0.7})
    model.learn(64)
    initial = model.trust_region_layer.initial_entropy
    assert initial.item() == pytest.approx(3 * (0.5 * np.log(2 * np.pi * np.e) + np.log(0.7)), rel=1e-6)
    model.learn(640)
    model.save(tmp_path / "model")
    loaded = TRPL.load(tmp_path / "model", env=PointEnv(), device="cpu")
    assert th.equal(loaded.trust_region_layer.initial_entropy, initial)
    loaded.learn(64)
    assert th.equal(loaded.trust_region_layer.initial_entropy, initial)


def test_predictions_are_restored_without_an_environment(tmp_path):
    model = make_model()
    model.learn(64)
    model.save(tmp_path / "model.zip")
    loaded = TRPL.load(tmp_path / "model", device="cpu")
    assert loaded.get_env() is None
    observations = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        model.predict(observations, deterministic=True)[0], loaded.predict(observations, deterministic=True)[0]
    )


def test_another_process_can_load(tmp_path):
    """Functions of this module come along, arguments are replaced, and the actions are the same."""
    trpl = make_model(
        mean_bound=StateBound(lambda obs: 0.03 + 0 * obs[:, 0]),
        projection=WassersteinProjection(),
        learning_rate=lambda p: 1e-3 * p,
        policy_kwargs=FULL,
    )
    small = {"n_steps": 64, "batch_size": 32, "seed": 0, "device": "cpu"}
    papi = PAPI("MlpPolicy", PointEnv(), clip_range=lambda p: 0.2 * p, learning_rate="lin_1e-3", **small)
    for model in (trpl, papi):
        model.learn(64).save(tmp_path / type(model).__name__)
    script = (
        "import sys, numpy, torch; torch.set_num_threads(1); from sb3_trl import PAPI, TRPL\n"
        "trpl = TRPL.load(sys.argv[1] + '/TRPL', device='cpu')\n"
        "papi = PAPI.load(sys.argv[1] + '/PAPI', device='cpu', kl_bound=0.5); assert papi.kl_bound == 0.5\n"
        "for model in (trpl, papi): print(model.predict(numpy.ones(3, 'f'), deterministic=True)[0].tolist())"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = [model.predict(np.ones(3, np.float32), deterministic=True)[0].tolist() for model in (trpl, papi)]
    assert result.stdout.splitlines() == [str(actions) for actions in expected]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"learning_rate": "lin_4e-3"}, {"train/learning_rate": 2e-3}),
        ({"critic_learning_rate": 0.25}, {"train/critic_learning_rate": 0.25}),
        ({"mean_bound": "lin_0.2"}, {"trust_region/mean_bound": 0.1}),
        ({"cov_bound": 0.125}, {"trust_region/cov_bound": 0.125}),
        ({"projection": WassersteinProjection(0.25, 0.5)}, {"trust_region/mean_bound": 0.25}),
        ({"entropy_schedule": "linear"}, {"trust_region/entropy_bound": 0.5 * 3 * 0.5 * np.log(2 * np.pi * np.e)}),
    ],
    ids=lambda x: next(iter(x)),
)
def test_arguments_can_be_changed_on_loading(tmp_path, change, expected):
    model = make_model(n_steps=64)
    model.save(tmp_path / "model")
    loaded = TRPL.load(tmp_path / "model", env=PointEnv(), device="cpu", **change)
    first, _ = train_and_record(loaded, 2)
    for key, value in expected.items():
        assert first[key] == pytest.approx(value, rel=1e-6)


def test_a_bad_argument_on_loading_is_refused(tmp_path):
    make_model().save(tmp_path / "model")
    with pytest.raises(ValueError, match="projection='l2' is unknown"):
        TRPL.load(tmp_path / "model", projection="l2")


def test_normalised_environments_go_on(tmp_path):
    env = VecNormalize(vec_env(2))
    model = make_model(env)
    model.learn(128)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "env.pkl"))
    restored = VecNormalize.load(str(tmp_path / "env.pkl"), vec_env(2))
    loaded = TRPL.load(tmp_path / "model", env=restored, device="cpu")
    np.testing.assert_array_equal(restored.obs_rms.mean, env.obs_rms.mean)
    loaded.set_logger(configure(None, []))
    loaded.learn(128, reset_num_timesteps=False)
    assert loaded.num_timesteps == 256
