"""The RL Zoo knows the algorithms, and their files are found by name."""

import pytest
import yaml

from sb3_trl import TRPL

pytest.importorskip("rl_zoo3")

import rl_zoo3.enjoy
import rl_zoo3.exp_manager
import rl_zoo3.utils
from stable_baselines3 import PPO

from sb3_trl.zoo.registry import SETTINGS_OF, algorithms, hyperparameter_file, register

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
