"""``sb3-trl export`` finds what ``sb3-trl train`` has left: the model, its statistics, its environment."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rl_zoo3")

from rl_zoo3.utils import create_test_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trl import TRPL, ExportedPolicy

SMALL = "-n 64 --eval-freq -1 --device cpu --seed 0 -params n_envs:2 n_steps:32 batch_size:32 n_epochs:1"


@pytest.fixture
def trained(run):
    code, printed, error = run(f"train --algo trpl --env Pendulum-v1 {SMALL} n_critic_epochs:1 frame_stack:2")
    assert code == 0, printed + error
    return Path("logs/trpl/Pendulum-v1_1")


def test_export(run, trained):
    """Frames are stacked behind the normalisation, as the Zoo does it."""
    code, printed, error = run("export --algo trpl --env Pendulum-v1 -f logs --format torchscript --noise")
    assert code == 0, error
    assert f"Exported to {trained / 'Pendulum-v1.pt'}" in printed
    assert re.search(r"input +observation: float32 \(batch, 6\)", printed)
    assert re.search(r"input +noise: float32 \(batch, 1\), independent normal numbers", printed)
    assert re.search(r"inside +normalisation of observation; actions clipped to the space", printed)
    assert re.search(r"outside stacking of 2 frames$", printed, re.MULTILINE)
    policy, model = ExportedPolicy(trained / "Pendulum-v1.pt"), TRPL.load(trained / "Pendulum-v1.zip", device="cpu")
    assert policy.metadata["timesteps"] == model.num_timesteps == 64
    hyperparams = {"normalize": True, "normalize_kwargs": {}}
    env = create_test_env("Pendulum-v1", stats_path=str(trained / "Pendulum-v1"), should_render=False,
                          hyperparams=hyperparams)  # fmt: skip
    assert isinstance(env, VecNormalize)
    frames = np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32)
    expected, _ = model.predict(np.concatenate([env.normalize_obs(frame) for frame in frames], 1), deterministic=True)
    action = policy(observation=np.concatenate(frames, 1), noise=np.zeros((7, 1)))["action"]
    assert np.allclose(action, expected, atol=1e-5)


def test_flags(run, trained, tmp_path):
    line = "export --algo trpl --env Pendulum-v1 --no-normalization --format torch -o"
    assert run(f"{line} policy.pt2")[0] == 0
    assert ExportedPolicy(tmp_path / "policy.pt2").metadata["inside"]["normalization"] == {}
    code, _, error = run(f"{line} policy.onnx")
    assert code == 2
    assert "files with format='torch' end in '.pt2'" in error
    code, _, error = run("export --algo trpl --env Pendulum-v1 --load-best")
    assert code == 2
    assert "No model found for trpl on Pendulum-v1" in error


def test_the_file_of_a_task_with_a_namespace(run):
    task = "sb3_trl/PendulumNoVel-v1"
    code, printed, error = run(f"train --algo trpl --env {task} {SMALL} n_critic_epochs:1")
    assert code == 0, printed + error
    code, printed, error = run(f"export --algo trpl --env {task} --format torchscript")
    assert code == 0, error
    assert Path("logs/trpl/sb3_trl-PendulumNoVel-v1_1/sb3_trl-PendulumNoVel-v1.pt").is_file(), printed


def test_a_wrapper_of_the_environment_is_named(run, tmp_path):
    (tmp_path / "settings.yml").write_text(
        "Pendulum-v1:\n  policy: MlpPolicy\n  n_timesteps: 64\n"
        "  env_wrapper:\n    - rl_zoo3.wrappers.HistoryWrapper:\n        horizon: 2\n"
    )
    code, _, error = run(f"train --algo trpl --env Pendulum-v1 --conf-file settings.yml {SMALL}")
    assert code == 0, error
    code, printed, error = run("export --algo trpl --env Pendulum-v1 --format torchscript")
    assert code == 0, error
    assert "outside HistoryWrapper" in printed
