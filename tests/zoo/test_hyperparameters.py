"""The YAML files that come with the package: every task has an entry, and every entry makes its model."""

import argparse
import inspect

import pytest
import yaml

from sb3_trl import TRPL

pytest.importorskip("rl_zoo3")

import rl_zoo3.utils

from sb3_trl.zoo.experiment import Experiment, read_settings
from sb3_trl.zoo.registry import SETTINGS_OF, algorithms, hyperparameter_file, hyperparameter_files, register


@pytest.mark.parametrize(("lean", "usual"), SETTINGS_OF.items())
def test_lean_algorithms_have_the_settings_of_the_usual_ones(tmp_path, lean, usual):
    """Every file of theirs is one of its own too, and the RL Zoo's is the default."""
    register()
    own, env = {"ppo": ("ppo_paper.yml", "Pendulum-v1"), "trpo": ("trpo_v5.yml", "Hopper-v5")}.get(
        usual, ("ppo_lstm_memory.yml", "sb3_trl/PendulumNoVel-v1")
    )
    for name in (None, own):
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


KEYS = [*algorithms(), *SETTINGS_OF.values()]
ENTRIES = [
    (name, algo, env)
    for name, path in hyperparameter_files().items()
    for algo in (max((key for key in KEYS if name.startswith(key)), key=len),)
    for env in yaml.safe_load(path.read_text())
    if "MT50" not in env  # whose fifty environments take long to make (below)
]
#: Lean algorithms have the settings of the usual ones (above), which name arguments: one entry of a file has them all.
FIRST = {(name, algo): (name, algo, env) for name, algo, env in reversed(ENTRIES)}.values()
ENTRIES += [(name, lean, env) for lean, usual in SETTINGS_OF.items() for name, algo, env in FIRST if algo == usual]
#: Environments for entries that name none, and what has to be installed for them.
STAND_INS = {"default": ["Pendulum-v1", "MountainCarContinuous-v0", "Pusher-v5"], "atari": ["PongNoFrameskip-v4"]}
STAND_INS["sb3_trl/MetaWorld*"] = ["sb3_trl/MetaWorldReach-v0"]
STAND_INS["default_discrete"] = ["FrozenLake-v1", "Taxi-v3"]
REQUIREMENTS = {"atari": "ale_py", "MiniGrid-DoorKey-5x5-v0": "minigrid", "sb3_trl/MiniGridMemoryS7-v0": "minigrid"}
REQUIREMENTS |= {f"sb3_trl/MetaWorld{name}": "metaworld" for name in ("*", "MT10-v0")}
REQUIREMENTS |= {f"sb3_trl/POPGym{game}Easy-v0": "popgym" for game in ("Autoencode", "RepeatPrevious")}
REQUIREMENTS |= {f"sb3_trl/Vizdoom{name}-v0": "vizdoom" for name in ("HealthGathering", "MyWayHome", "TakeCover")}


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
    assert (model.get_vec_normalize_env() is not None) == bool(entry.get("normalize"))
    assert model.n_envs == entry.get("n_envs", 1)
    model.get_env().close()


@pytest.mark.parametrize("algo", ["fixpo", "trpl"])
def test_settings_of_fifty_tasks_are_those_of_ten(algo):
    entries = yaml.safe_load(hyperparameter_file(algo).read_text())
    ten, fifty = (entries[f"sb3_trl/MetaWorldMT{n}-v0"] for n in (10, 50))
    assert (ten["n_envs"], ten["tasks"]) == (10, 10)
    assert (fifty["n_envs"], fifty["tasks"]) == (50, 50)
    assert {key for key in ten if ten[key] != fifty[key]} == {"n_envs", "tasks", "n_timesteps", "n_steps", "batch_size"}
    assert fifty["n_envs"] * fifty["n_steps"] % fifty["batch_size"] == 0


def test_a_pattern_is_for_tasks_without_an_entry(tmp_path):
    file = tmp_path / "patterns.yml"
    entry = "{policy: MlpPolicy, n_timesteps: 10, n_steps: "
    kinds = {"CartPole-v0": 1, "'CartPole-*'": 2, "'C*'": 3, "'[A-Z]endulum*'": 4, "default_discrete": 5, "default": 6}
    file.write_text("".join(f"{name}: {entry}{n_steps}}}\n" for name, n_steps in kinds.items()))
    tasks = {
        "CartPole-v0": 1,
        "CartPole-v1": 2,
        "CliffWalking-v1": 3,
        "Pendulum-v1": 4,
        "Acrobot-v1": 5,
        "Hopper-v5": 6,
    }
    assert {task: read_settings("trpl", task, str(file))["n_steps"] for task in tasks} == tasks


def test_ant_is_the_same_in_all_files_of_the_package():
    for path in hyperparameter_files().values():
        entries = yaml.safe_load(path.read_text())
        entry = entries.get("Ant-v5", {"env_kwargs": {"include_cfrc_ext_in_observation": False}})
        assert entry["env_kwargs"] == {"include_cfrc_ext_in_observation": False}, path.name
