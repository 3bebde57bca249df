"""Models and studies that version 0.1 saved, when every module stood at the root of the package."""

import json
import pickle
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import sb3_trl
from sb3_trl.moved import old_modules, with_new_names

SAVED = Path(__file__).parent / "saved"
EXPECTED = json.loads((SAVED / "expected.json").read_text())
CLASSES = {
    "trpl": "TRPL",
    "trpl_schedules": "TRPL",
    "fixpo": "FixPO",
    "papi": "PAPI",
    "lean_ppo": "LeanPPO",
    "lean_trpo": "LeanTRPO",
}

#: What the modules of then said they define.
NAMES = {
    "action_parameters": "ActionParameters Actions ActionsAndValues Family action_parameters join",
    "callbacks": "TrustRegionCallback",
    "compilation": "Compiled Result Varying preserved_random_state pure_forward warn_uncompiled",
    "dashboard": "CHARTS DashboardCallback hyperparameters write_layout",
    "direct": "direct",
    "distributions": "ProjectedGaussianDistribution ScaleHead",
    "enforcement": "Checkpoint refined roll_back step_until_clean",
    "evaluation": "CompiledEvaluation Evaluation",
    "fixpo": "FixPO Weights",
    "flat_adam": "Flat Layout State adam clipped is_plain_adam step_sizes",
    "fused_adam": "step_function",
    "gaussian_algorithm": "GaussianAlgorithm",
    "lean_actor": "ACTIVATIONS IN_PLACE LeanActor has_hooks",
    "lean_env": "stepping",
    "lean_locals": "RolloutLocals give_locals",
    "lean_normalize": "can_normalize normalized_step update",
    "lean_ppo": "LeanPPO Weights",
    "lean_rollout": "Turn can_collect collect_rollout generalized_advantages take_turns",
    "lean_trpo": "LeanTRPO",
    "losses": "clipped_surrogate_loss clipped_values normalize surrogate_loss trust_region_loss value_loss",
    "on_policy": "LeanRollouts RunningMeans TrustRegionAlgorithm",
    "papi": "PAPI",
    "policies": "CnnPolicy MlpPolicy SingleOptimizerPolicy TRPLPolicy TRPLCnnPolicy TRPLMultiInputPolicy",
    "policy_watch": "PolicyWatch callbacks_in leaves_policy_alone",
    "rollout": "FiniteCheckCallback Rollout Shared Table chunks joined reward_scale rollout_from_buffer table",
    "schedules": "BoundSchedule StateBound as_bound as_schedule bound_at",
    "study.seed_batch": "SeedBatch can_batch",
    "trpl": "TRPL Weights",
    "trust_region": "PROJECTIONS TrustRegion concatenate make_projection",
}


@pytest.mark.parametrize("name", CLASSES)
def test_models_load_act_as_then_and_go_on(name):
    model = getattr(sb3_trl, CLASSES[name]).load(SAVED / f"{name}.zip", env=gym.make("Pendulum-v1"), device="cpu")
    actions, _ = model.predict(np.array(EXPECTED["observations"], np.float32), deterministic=True)
    np.testing.assert_allclose(actions, EXPECTED["actions"][name], atol=1e-6)
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 128 + 64


@pytest.mark.parametrize("module", NAMES)
def test_pickles_find_what_they_know_by_the_path_of_then(module):
    for name in NAMES[module].split():
        with old_modules():
            assert pickle.loads(f"csb3_trl.{module}\n{name}\n.".encode()) is not None


def test_nothing_is_left_of_it():
    before = set(sys.modules)
    with pytest.raises(pickle.UnpicklingError), old_modules():
        pickle.loads(b"csb3_trl.trpl\nTRPL\nand then something broken")
    assert "sb3_trl.trpl" not in {*sys.modules} - before
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(b"csb3_trl.trpl\nTRPL\n.")


def test_unknown_names_stay_unknown():
    with old_modules(), pytest.raises(AttributeError, match="'Unheard' on <module"):
        pickle.loads(b"csb3_trl.trpl\nUnheard\n.")


def test_settings_of_studies():
    then = '{"callback": ["sb3_trl.callbacks.TrustRegionCallback"]}'
    assert json.loads(with_new_names(then)) == {"callback": ["sb3_trl.TrustRegionCallback"]}
