"""What a ``SeedBatch`` can be given, and what is said of anything else."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from support import PointEnv, Recorder, make_model, vec_env

from sb3_trl import TRPL, FixPO, SeedBatch

TRPL_OPTIONS = {"n_steps": 40, "batch_size": 32, "n_epochs": 2, "n_critic_epochs": 2, "device": "cpu"}


@pytest.mark.parametrize("seeds", [np.arange(3, 6), np.random.default_rng(0).integers(9, size=2), range(2), (7,)])
def test_seeds_of_numpy_are_integers(seeds):
    batch = SeedBatch(TRPL, "MlpPolicy", "Pendulum-v1", seeds, **TRPL_OPTIONS)
    assert batch.seeds == [int(seed) for seed in seeds] == [model.seed for model in batch.models]
    assert all(type(seed) is int for seed in batch.seeds)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([], "one or more different seeds"),
        ([1, 1], "one or more different seeds"),
        (np.array([1, 1]), "one or more different seeds"),
        (3, r"seeds=3: give a list of different integers, such as range\(3\)"),
        ("12", "seeds='12': give a list"),
        (None, "seeds=None: give a list"),
        (["1"], "'1' is no seed: give integers from 0 to 4294967295"),
        ([1.0], "1.0 is no seed"),
        ([True], "True is no seed"),
        ([2, -1], "-1 is no seed"),
        ([2**32], "4294967296 is no seed"),
    ],
)
def test_seeds_that_are_none(seeds, message):
    with pytest.raises(ValueError, match=message):
        SeedBatch(TRPL, "MlpPolicy", "Pendulum-v1", seeds, **TRPL_OPTIONS)


@pytest.mark.parametrize("env", [PointEnv(), vec_env(), VecNormalize(vec_env()), None, 3])
def test_an_environment_is_not_for_several_seeds(env):
    with pytest.raises(ValueError, match=r"every seed needs environments of its own.*lambda seed: make_vec_env"):
        SeedBatch(TRPL, "MlpPolicy", env, [1, 2], **TRPL_OPTIONS)


def with_statistics_of(source: VecNormalize) -> VecNormalize:
    env = VecNormalize(vec_env())
    env.obs_rms = source.obs_rms
    return env


SHARED_ENV, SHARED_VEC_ENV, SHARED_STATISTICS = PointEnv(), vec_env(), VecNormalize(vec_env())


@pytest.mark.parametrize(
    ("env", "what"),
    [
        (lambda seed: SHARED_ENV, "PointEnv"),
        (lambda seed: Monitor(SHARED_ENV), "PointEnv"),
        (lambda seed: DummyVecEnv([lambda: Monitor(SHARED_ENV)]), "PointEnv"),
        (lambda seed: VecNormalize(DummyVecEnv([lambda: Monitor(SHARED_ENV)])), "PointEnv"),
        (lambda seed: SHARED_VEC_ENV, "DummyVecEnv"),
        (lambda seed: VecNormalize(SHARED_VEC_ENV), "DummyVecEnv"),
        (lambda seed: with_statistics_of(SHARED_STATISTICS), "RunningMeanStd"),
    ],
)
def test_environments_that_seeds_share(env, what):
    with pytest.raises(ValueError, match=f"share one {what}.*make models, environments and wrappers anew"):
        SeedBatch(TRPL, "MlpPolicy", env, [1, 2], **TRPL_OPTIONS)


def test_one_model_twice():
    model = make_model()
    with pytest.raises(ValueError, match="share one TRPL"):
        SeedBatch.of_models(lambda seed: model, [1, 2])


@pytest.mark.parametrize(
    ("kwargs", "other", "message"),
    [
        ({}, {"env": PointEnv(shape=(2,))}, "the observation space is Box.*make all of them.*alike"),
        ({}, {"env": vec_env(2)}, "the number of environments is 1 in one and 2 in another"),
        ({}, {"n_steps": 32}, "n_steps is 64 in one and 32 in another"),
        ({}, {"ent_coef": 0.1}, "ent_coef is 0.0 in one and 0.1 in another"),
        ({}, {"projection": "w2"}, "projection is kl in one and w2 in another"),
        ({}, {"policy_kwargs": {"net_arch": [8]}}, "the network is"),
        ({}, {"policy_kwargs": {"activation_fn": th.nn.ELU}}, "the network is"),
    ],
)
def test_models_that_differ(kwargs, other, message):
    def make(seed: int) -> TRPL:
        return make_model(**(kwargs if seed == 1 else other))

    with pytest.raises(ValueError, match=f"(?s)may differ in their seeds alone, but {message}"):
        SeedBatch.of_models(make, [1, 2])


def test_models_of_other_kinds():
    def without_environment(seed: int) -> TRPL:
        model = make_model()
        model.env = None
        return model

    def make(seed: int):
        return TRPL("MlpPolicy", PointEnv()) if seed == 1 else FixPO("MlpPolicy", PointEnv())

    with pytest.raises(ValueError, match="the algorithm is TRPL in one and FixPO in another"):
        SeedBatch.of_models(make, [1, 2])
    with pytest.raises(ValueError, match="is no model of TRPL, FixPO, PAPI or LeanPPO"):
        SeedBatch.of_models(lambda seed: PPO("MlpPolicy", PointEnv()), [1])
    with pytest.raises(ValueError, match="has no environment"):
        SeedBatch.of_models(without_environment, [1])


ONE = Recorder()


@pytest.mark.parametrize("callback", [ONE, [ONE], lambda model: ONE, lambda model: [ONE]])
def test_a_callback_is_not_for_several_models(callback):
    batch = SeedBatch(TRPL, "MlpPolicy", "Pendulum-v1", [1, 2], compile=False, **TRPL_OPTIONS)
    with pytest.raises(ValueError, match=r"cannot serve several models, give a function .* lambda model: MyCallback"):
        batch.learn(40, callback)
