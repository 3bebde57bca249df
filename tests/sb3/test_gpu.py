"""On a GPU an algorithm does what it does on the CPU. Most of this needs one."""

import numpy as np
import pytest
import torch as th
from changes import Acting, anneal, make
from recurrent import RECURRENT, recurrent
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import get_device
from support import PointEnv, all_equal, vec_env

from sb3_trl import PAPI, TRPL, FixPO, LeanPPO, LeanTRPO, RecurrentFixPO, SeedBatch

ALGORITHMS = [TRPL, FixPO, PAPI, LeanPPO, LeanTRPO]
GPU = get_device("auto")
needs_gpu = pytest.mark.skipif(GPU.type == "cpu", reason="there is no GPU")

# What SB3 says of small networks on a GPU.
pytestmark = pytest.mark.filterwarnings("ignore:You are trying to run:UserWarning")


class Noisy(FlattenExtractor):
    """Draws random numbers on the device of the observations."""

    def forward(self, observations):
        return super().forward(observations + 0.1 * th.randn_like(observations))


def on_cpu(model) -> dict[str, th.Tensor]:
    return {name: tensor.cpu() for name, tensor in model.policy.state_dict().items()}


def assert_near(model, other, steps: int) -> None:
    """Rounding turns a step of Adam, of the size of the learning rate, where a gradient is next to nothing."""
    ours, others = on_cpu(model), on_cpu(other)
    for name, tensor in ours.items():
        difference = (tensor - others[name]).abs()
        assert difference.max() <= 2 * steps * 3e-4, name
        assert difference.median() <= 1e-5, name


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_small_networks_are_recommended_the_cpu(cls):
    with pytest.warns(UserWarning, match=f"You are trying to run {cls.__name__} on the GPU"):
        cls("MlpPolicy", PointEnv(), device="meta")


@needs_gpu
@pytest.mark.parametrize("cls", RECURRENT)
def test_a_recurrent_update(cls):
    """With steps of the fixup phase, which are taken in evaluation mode."""
    options = {"kl_bound": 1e-7} if cls is RecurrentFixPO else {}
    models = [recurrent(cls, device=device, **options) for device in (GPU, "cpu")]
    models[0].policy.load_state_dict(models[1].policy.state_dict())
    for model in models:
        model.learn(32)
        assert model._last_lstm_states.vf[0].device.type == model.device.type
    buffers = [model.rollout_buffer for model in models]
    for name in ("observations", "values", "hidden_states_pi", "cell_states_vf"):
        assert np.allclose(*(getattr(buffer, name)[0] for buffer in buffers), rtol=1e-4, atol=1e-4), name
    assert all(bool(p.isfinite().all()) for p in models[0].policy.parameters())


@needs_gpu
def test_hidden_states_that_were_saved_on_a_gpu_are_loaded_on_the_cpu(tmp_path):
    model = recurrent(RecurrentFixPO, device=GPU).learn(32)
    model.save(tmp_path / "model")
    loaded = RecurrentFixPO.load(tmp_path / "model", device="cpu")
    assert loaded._last_lstm_states.pi[0].device.type == "cpu"
    assert th.equal(loaded._last_lstm_states.pi[0], model._last_lstm_states.pi[0].cpu())


@needs_gpu
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.traced)])
@pytest.mark.parametrize("cls", [TRPL, FixPO, PAPI, LeanPPO])
def test_an_update_is_that_of_the_cpu(cls, compile):
    models = [make(cls, device=device, compile=compile, learning_rate=3e-4).learn(64) for device in (GPU, "cpu")]
    assert models[0].device.type == models[0].policy.device.type == GPU.type
    buffers = [model.rollout_buffer for model in models]
    for name in ("observations", "actions", "values", "log_probs", "advantages"):
        assert np.allclose(*(getattr(buffer, name) for buffer in buffers), rtol=1e-4, atol=1e-4), name
    assert_near(*models, steps=8)
    if compile:
        assert all(step.is_compiled for step in models[0]._compiled_steps.values())


@needs_gpu
@pytest.mark.parametrize(
    "kwargs",
    [
        {"projection": "w2"},
        {"projection": "frobenius", "entropy_schedule": "exp"},
        {"projection": "joint_kl"},
        {"projection": "kl", "hard": True, "policy_kwargs": {"covariance": "full", "contextual_std": True}},
        {"projection": "w2", "n_regression_epochs": 2, "policy_kwargs": {"covariance": "full"}},
    ],
)
def test_every_trust_region(kwargs):
    models = [make(TRPL, device=device, learning_rate=3e-4, **kwargs).learn(64) for device in (GPU, "cpu")]
    assert_near(*models, steps=16)


@needs_gpu
@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("observation", ["dict", "image"])
def test_every_policy_trains_and_its_file_is_of_any_device(cls, observation, tmp_path):
    env, policy = vec_env(2, observation=observation), {"dict": "MultiInputPolicy", "image": "CnnPolicy"}[observation]
    model = make(cls, env, policy, device=GPU)
    model.learn(128)
    model.save(tmp_path / "model")
    for device in ("cpu", GPU):
        loaded = cls.load(tmp_path / "model", env, device)
        assert loaded.policy.device.type == th.device(device).type
        assert all_equal(on_cpu(loaded), on_cpu(model))
        loaded.learn(64)


@needs_gpu
@pytest.mark.parametrize("cls", ALGORITHMS)
def test_what_is_stored_is_of_the_policy_that_acted_whoever_changes_it(cls):
    make(cls, device=GPU).learn(128, Acting(anneal, "step"))


@needs_gpu
@pytest.mark.traced
def test_seeds_learn_there_what_they_learn_alone():
    batch = SeedBatch(
        TRPL, "MlpPolicy", lambda seed: vec_env(2), range(2), n_steps=32, batch_size=16, n_epochs=2, device=GPU
    )
    batch.learn(64)
    for seed, model in enumerate(batch.models):
        alone = TRPL("MlpPolicy", vec_env(2), n_steps=32, batch_size=16, n_epochs=2, seed=seed, device=GPU)
        assert_near(model, alone.learn(64), steps=16)


@needs_gpu
def test_random_numbers_of_the_gpu_go_on_where_they_were():
    model = make(TRPL, device=GPU, policy_kwargs={"features_extractor_class": Noisy})
    before = th.get_device_module(GPU).get_rng_state()
    model.policy.actor_parameters()
    assert th.equal(th.get_device_module(GPU).get_rng_state(), before)
