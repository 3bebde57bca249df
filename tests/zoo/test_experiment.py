"""The RL Zoo's experiment with this package's files: what it reads, and what a training leaves."""

import contextlib
import io
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from support import call, event_file

from sb3_trl import TRPL

pytest.importorskip("rl_zoo3")

from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trl.zoo.experiment import find_configuration
from sb3_trl.zoo.registry import hyperparameter_file


def test_the_file_of_an_algorithm():
    assert find_configuration(None, "trpl") == str(hyperparameter_file("trpl"))
    assert find_configuration(None, "ppo") is None


def test_a_file_by_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert find_configuration("trpl_paper.yml", "trpl") == str(hyperparameter_file("trpl_paper.yml"))
    assert find_configuration("some.module", "trpl") == "some.module"
    Path("trpl_paper.yml").write_text("")
    assert find_configuration("trpl_paper.yml", "trpl") == "trpl_paper.yml", "a local file comes first"


def test_schedules_and_numbers_in_a_file(run, tmp_path):
    (tmp_path / "my.yml").write_text(
        "Pendulum-v1:\n  policy: MlpPolicy\n  n_timesteps: 1e3\n  n_steps: 64\n  learning_rate: 5e-4\n"
        "  critic_learning_rate: lin_1e-3\n  mean_bound: lin_0.05\n"
    )
    code, out, _ = run("train --algo=trpl --conf-file=my.yml --env Pendulum-v1 -n 64 --eval-freq -1 --device cpu")
    assert code == 0
    assert "Loading hyperparameters from: my.yml" in out
    model = TRPL.load(tmp_path / "logs" / "trpl" / "Pendulum-v1_1" / "Pendulum-v1.zip", device="cpu")
    assert model.learning_rate(0.5) == 5e-4
    assert (model.critic_learning_rate, model.mean_bound) == ("lin_1e-3", "lin_0.05")


#: What a short run has instead of the file's. A falling learning rate would be 0 in its last update.
RUN = {"n_envs": 2, "n_steps": 512, "n_epochs": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short training run, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("zoo"), io.StringIO()
    command = "train --algo trpl --env Pendulum-v1 -n 2048 --seed 3 --eval-freq 1000 --eval-episodes 1 --save-freq 1024"
    command += " --tensorboard-log runs --num-threads 1 --device cpu -params"
    with contextlib.redirect_stdout(printed):
        call(" ".join([command, *(f"{key}:{value}" for key, value in RUN.items())]), folder)
    return folder, printed.getvalue()


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_every_file_of_a_run(trained):
    folder, _ = trained
    expected = {
        "Pendulum-v1.zip",
        "best_model.zip",
        "evaluations.npz",
        "0.monitor.csv",
        "1.monitor.csv",
        "rl_model_1024_steps.zip",
        "rl_model_2048_steps.zip",
        *(f"Pendulum-v1/{name}" for name in ("args.yml", "command.txt", "config.yml", "vecnormalize.pkl")),
    }
    assert files(folder / "logs" / "trpl" / "Pendulum-v1_1") == expected
    assert len(files(folder) - {f"logs/trpl/Pendulum-v1_1/{name}" for name in expected}) == 1, "and the event file"


@pytest.mark.parametrize("name", ["Pendulum-v1", "best_model", "rl_model_1024_steps"])
def test_the_models_of_a_run(trained, name):
    model = TRPL.load(trained[0] / "logs" / "trpl" / "Pendulum-v1_1" / f"{name}.zip", device="cpu")
    assert 1000 <= model.num_timesteps <= 2048
    assert (model.n_steps, model.n_epochs, model.seed) == (512, 2, 3)
    assert model.predict(np.zeros(3, np.float32), deterministic=True)[0].shape == (1,)


def test_the_final_model_is_the_last_checkpoint_plus_its_update(trained):
    names = ("Pendulum-v1.zip", "rl_model_2048_steps.zip")
    logs = trained[0] / "logs" / "trpl" / "Pendulum-v1_1"
    final, checkpoint = (TRPL.load(logs / name, device="cpu") for name in names)
    assert final.num_timesteps == checkpoint.num_timesteps == 2048
    assert final._n_updates == checkpoint._n_updates + 2
    observation = th.zeros(1, 3)
    assert not th.equal(final.policy.gaussian(observation).mean, checkpoint.policy.gaussian(observation).mean)


def test_the_settings_of_a_run(trained):
    folder = trained[0] / "logs" / "trpl" / "Pendulum-v1_1" / "Pendulum-v1"
    config = dict(yaml.unsafe_load((folder / "config.yml").read_text()))
    entry = yaml.safe_load(hyperparameter_file("trpl").read_text())
    expected = entry.get("Pendulum-v1", entry["default"]) | RUN
    assert config == expected
    assert yaml.unsafe_load((folder / "args.yml").read_text())["algo"] == "trpl"
    assert "--algo trpl --env Pendulum-v1" in (folder / "command.txt").read_text()


def test_the_statistics_of_a_run(trained):
    folder = trained[0] / "logs" / "trpl" / "Pendulum-v1_1"
    env = VecNormalize.load(folder / "Pendulum-v1" / "vecnormalize.pkl", DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    assert env.obs_rms.count > 2048
    evaluations = np.load(folder / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [1000, 2000]
    assert evaluations["results"].shape == (2, 1)
    monitor = (folder / "0.monitor.csv").read_text().splitlines()
    assert monitor[1] == "r,l,t"
    assert len(monitor) == 2 + 1024 // 200


def test_the_log_of_a_run(trained):
    folder, printed = trained
    events = event_file(folder / "runs" / "Pendulum-v1" / "TRPL_1")
    for key in ("trust_region/kl_mean", "train/value_loss", "eval/mean_reward", "rollout/ep_rew_mean"):
        assert len(events.Scalars(key)) >= 1
        assert key.partition("/")[2] in printed


def test_the_environment_of_the_file_is_also_the_one_evaluated(tmp_path, run, monkeypatch):
    """Ant's entry leaves the contact forces out of the observation; 27 numbers, in training and evaluation."""
    monkeypatch.setattr(gym.spec("Ant-v5"), "max_episode_steps", 20)
    small = "n_steps:64 batch_size:32 n_epochs:1 n_critic_epochs:1"
    line = f"train --algo trpl --env Ant-v5 -n 64 --eval-freq 32 --eval-episodes 1 -f {tmp_path} --device cpu"
    code, _, error = run(f"{line} -params {small}")
    assert code == 0, error
    assert (tmp_path / "trpl" / "Ant-v5_1" / "evaluations.npz").is_file()


class Masked(gym.Wrapper):
    """CartPole, of whose actions the one that pushes away from the pole's lean is impossible: doing it is an error."""

    def action_masks(self) -> np.ndarray:
        leans_right = self.unwrapped.state[2] > 0
        return np.array([not leans_right, leans_right])

    def step(self, action):
        assert self.action_masks()[action], "impossible"
        return super().step(action)


@pytest.mark.parametrize("algo", ["trpl", "fixpo"])
def test_what_is_evaluated_takes_masks_as_training_does(run, tmp_path, monkeypatch, algo):
    """In a training, and in a study."""
    monkeypatch.setitem(gym.registry, "Masked-v0", gym.spec("CartPole-v1"))
    (tmp_path / "my.yml").write_text(
        f"Masked-v0:\n  policy: MlpPolicy\n  n_timesteps: 256\n  n_steps: 64\n  n_envs: 2\n  n_epochs: 1\n"
        f"  env_wrapper: {__name__}.Masked\n"
    )
    command = f"train --algo={algo} --conf-file=my.yml --env Masked-v0 -n 256 --eval-freq 128 --device cpu"
    assert run(command)[0] == 0
    evaluations = np.load(tmp_path / "logs" / algo / "Masked-v0_1" / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [128, 256]
    study = f"tasks: [Masked-v0]\nseeds: 1\neval_freq: 128\nmethods:\n  A: {{algo: {algo}, conf_file: my.yml}}\n"
    (tmp_path / "study.yml").write_text(study)
    code, out, err = run("study study.yml --jobs 1")
    assert code == 0, out + err
