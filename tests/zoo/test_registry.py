import argparse
import contextlib
import inspect
import io
from importlib.metadata import entry_points

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from support import call, event_file

from sb3_trl import TRPL

pytest.importorskip("rl_zoo3")

import rl_zoo3.enjoy
import rl_zoo3.exp_manager
import rl_zoo3.utils
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trl import cli
from sb3_trl.zoo.experiment import Experiment
from sb3_trl.zoo.registry import SETTINGS_OF, algorithms, hyperparameter_file, hyperparameter_files, register

# --- the registry ---


def test_every_algorithm_has_a_key():
    assert algorithms()["trpl"] is TRPL
    assert all(key.replace("_", "") == cls.__name__.lower() for key, cls in algorithms().items())


def test_registration_reaches_every_module_of_the_zoo():
    before = dict(rl_zoo3.utils.ALGOS)
    register()
    register()
    for module in (rl_zoo3.utils, rl_zoo3.exp_manager, rl_zoo3.enjoy):
        assert module.ALGOS["trpl"] is TRPL
        assert module.ALGOS["ppo"] is PPO
    assert rl_zoo3.utils.ALGOS.keys() == before.keys() | algorithms().keys()


def test_the_command_is_installed():
    (script,) = entry_points(group="console_scripts", name="sb3-trl")
    assert script.load() is cli.main


# --- YAML files ---


@pytest.mark.parametrize("name", ["trpl", "trpl.yml"])
def test_files_are_found_by_name(name):
    path = hyperparameter_file(name)
    assert path.name == "trpl.yml"
    assert "HalfCheetah-v5" in yaml.safe_load(path.read_text())


@pytest.mark.parametrize("name", ["nothing", "nothing.yml", "trpl.yaml.yml", "../pyproject.toml", ""])
def test_other_names_are_not_found(name):
    assert hyperparameter_file(name) is None


def test_every_algorithm_has_a_file():
    for key in algorithms().keys() - SETTINGS_OF.keys():
        assert hyperparameter_file(key) is not None


@pytest.mark.parametrize(("lean", "usual"), SETTINGS_OF.items())
def test_lean_algorithms_have_the_settings_of_the_usual_ones(tmp_path, lean, usual):
    """Every file of theirs is one of its own too, and the RL Zoo's is the default."""
    register()
    for name in (None, "ppo_paper.yml" if usual == "ppo" else "trpo_v5.yml"):
        env = "Pendulum-v1" if name != "trpo_v5.yml" else "Hopper-v5"
        ours, theirs = (
            Experiment(argparse.Namespace(), algo, env, str(tmp_path), n_timesteps=-1, config=name)
            for algo in (lean, usual)
        )
        assert ours.config == theirs.config
        assert ours.read_hyperparameters()[1] == theirs.read_hyperparameters()[1]


def test_defaults_of_the_constructor_are_those_of_the_file():
    entry = yaml.safe_load(hyperparameter_file("trpl").read_text())["default"]
    model = TRPL("MlpPolicy", "Pendulum-v1", device="cpu")
    names = inspect.signature(TRPL.__init__).parameters.keys() & entry.keys() - {"policy", "n_steps", "policy_kwargs"}
    assert {"learning_rate", "critic_learning_rate", "batch_size", "n_epochs", "gamma"} <= names
    for name in names - {"mean_bound", "cov_bound"}:
        value = getattr(model, name)
        assert (value(1) if callable(value) else value) == entry[name], name
    layer = model.trust_region_layer.projection
    assert (layer.mean_bound, layer.cov_bound) == (entry["mean_bound"], entry["cov_bound"])
    assert model.n_steps == entry["n_envs"] * entry["n_steps"], "as many steps in a rollout"
    assert entry["policy_kwargs"] == f"dict(init_std={model.policy.action_dist.init_std})"


#: The tasks of both papers in Gymnasium's current versions, and the common small ones.
MUJOCO = ["HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid", "Swimmer", "Reacher"]
MUJOCO = [f"{name}-v5" for name in (*MUJOCO, "InvertedPendulum", "InvertedDoublePendulum")]
CONTINUOUS = [*MUJOCO, "Pendulum-v1", "LunarLanderContinuous-v3", "BipedalWalker-v3"]
DISCRETE = ["CartPole-v1", "Acrobot-v1", "LunarLander-v3"]


@pytest.mark.parametrize(("name", "tasks"), [("trpl", CONTINUOUS), ("fixpo", CONTINUOUS + DISCRETE)])
def test_every_task_has_an_entry(name, tasks):
    entries = yaml.safe_load(hyperparameter_file(name).read_text())
    assert {*tasks, "default"} <= entries.keys()
    if name == "trpl":
        assert all(entry["projection"] == "kl" for entry in entries.values())


ENTRIES = [
    (name, algo, env)
    for name, path in hyperparameter_files().items()
    for algo in (name.partition(".")[0].partition("_")[0],)
    for env in yaml.safe_load(path.read_text())
]
ENTRIES += [(name, lean, env) for lean, usual in SETTINGS_OF.items() for name, algo, env in ENTRIES if algo == usual]
#: Environments for entries that name none, and what has to be installed for them.
STAND_INS = {"default": ["Pendulum-v1", "MountainCarContinuous-v0", "Pusher-v5"], "atari": ["PongNoFrameskip-v4"]}
REQUIREMENTS = {"atari": "ale_py"}


@pytest.mark.parametrize(("name", "algo", "env"), ENTRIES, ids=lambda x: str(x))
def test_every_entry_makes_its_model(tmp_path, name, algo, env):
    if env in REQUIREMENTS:
        pytest.importorskip(REQUIREMENTS[env])
    content = yaml.safe_load(hyperparameter_file(name).read_text())
    entry = content[env]
    env = next(stand_in for stand_in in STAND_INS.get(env, [env]) if stand_in == env or stand_in not in content)
    register()
    experiment = Experiment(
        argparse.Namespace(), algo, env, str(tmp_path), n_timesteps=-1, config=name, verbose=0, device="cpu"
    )
    model, _ = experiment.setup_experiment()
    assert isinstance(model, rl_zoo3.utils.ALGOS[algo])
    assert experiment.n_timesteps == entry["n_timesteps"]
    arguments = inspect.signature(type(model)).parameters
    for key, value in entry.items():
        if key in arguments and isinstance(value, (int, float)):
            kept = getattr(model, key)
            assert value == (kept(1.0) if callable(kept) else kept), key
    assert isinstance(model.get_env(), VecNormalize) == bool(entry.get("normalize"))
    assert model.n_envs == entry.get("n_envs", 1)
    model.get_env().close()


# --- training from the command line ---

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
