"""A model is copied, pickled and saved at any time, with the arguments that were given."""

import copy
import io
import pickle

import cloudpickle
import pytest
import torch as th
from changes import Calls, make
from support import ALGORITHMS, all_equal, further, parameters

from sb3_trl import PAPI, TRPL, FixPO, LeanPPO


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
@pytest.mark.parametrize("cls", [TRPL, FixPO, *further(PAPI, LeanPPO)])
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
    others = {"learning_rate"} | ({"kl_bound"} if cls is TRPL else set())  # that one bounds discrete actions
    given |= {name: value for name, value in GIVEN.items() if hasattr(make(cls), name) and name not in others}
    model = make(cls, **given)
    if cls is LeanPPO:
        given.pop("clip_range_vf")
    for one in (model, model.learn(64), saved(model), copy.deepcopy(model)):
        assert {name: getattr(one, name) for name in given} == given
        assert one.lr_schedule(1.0) == 1e-3
        assert one.lr_schedule(0.5) == (1e-3 if learning_rate == 1e-3 else 5e-4)
