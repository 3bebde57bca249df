"""What stands on an agent's page where it is not the simplest of agents."""

import json

import gymnasium as gym
import pytest
import yaml
from torch import nn

pytest.importorskip("rl_zoo3")

from sb3_trl.zoo.card import Agent, install, model_card, settings_file
from sb3_trl.zoo.experiment import read_settings

CARTPOLE = Agent("trpl", "CartPole-v1", "me", "trpl-CartPole-v1")


@pytest.fixture
def card(tmp_path):
    """Return the page of an agent without a film."""

    def write(agent: Agent = CARTPOLE, hyperparams: dict | None = None, **arguments) -> str:
        data = tmp_path / f"{agent.algo}-{agent.name}" / "data"
        data.parent.mkdir()
        data.write_text(json.dumps({"num_timesteps": 1_234_567}))
        results = {"mean_reward": 1.0, "std_reward": 0.5, "n_eval_episodes": 10, "is_deterministic": False}
        (tmp_path / "results.json").write_text(json.dumps(results))
        given = {"env_kwargs": None, "gym_packages": [], "n_timesteps": -1, "seed": 3, "trained_agent": ""}
        (tmp_path / "args.yml").write_text(yaml.dump(given | arguments))
        (tmp_path / "config.yml").write_text(yaml.dump(hyperparams or {"policy": "MlpPolicy", "n_timesteps": 5e4}))
        return model_card(agent, "TRPL", tmp_path)

    return write


def test_what_it_reached(card):
    text = card()
    assert "TRPL after 1,234,567 environment steps" in text
    assert "**1.00 ± 0.50** (mean and standard deviation of 10 episodes, actions drawn)" in text
    assert "evaluate_policy(model, env, deterministic=False)" in text
    assert "<video" not in text


def test_steps_are_those_of_the_command_or_of_the_file(card, tmp_path):
    assert "--conf-file settings.yml -n 50000 --seed 3\n" in card()
    (tmp_path / "trpl-CartPole-v1" / "data").unlink()
    (tmp_path / "trpl-CartPole-v1").rmdir()
    assert " -n 700 --seed 3\n" in card(n_timesteps=700)


def test_a_training_that_went_on(card):
    text = card(trained_agent="logs/secret/place.zip")
    assert " -i agent.zip\n" in text
    assert "here `agent.zip`" in text
    assert "secret" not in text


def test_environments_of_others(card):
    text = card(gym_packages=["my_tasks"])
    for command in ("enjoy", "export", "train"):
        (line,) = (line for line in text.splitlines() if line.startswith(f"sb3-trl {command} "))
        assert line.endswith(" --gym-packages my_tasks")
    assert "\nimport my_tasks\n" in text
    assert "record-video" not in text, "which knows no such flag"


def test_arguments_of_the_environment(card, tmp_path):
    text = card(env_kwargs={"sutton_barto_reward": True})
    assert "env_kwargs={'sutton_barto_reward': True}" in text
    settings = read_settings("trpl", "CartPole-v1", str(tmp_path / "settings.yml"))
    assert settings["env_kwargs"] == {"sutton_barto_reward": True}


def test_an_id_with_a_slash(card):
    text = card(Agent("fixpo", "sb3_trl/CartPoleNoVel-v1", "me", "fixpo-sb3_trl-CartPoleNoVel-v1"))
    assert '    "sb3_trl/CartPoleNoVel-v1", stats_path' in text
    assert 'run = "downloaded/fixpo/sb3_trl-CartPoleNoVel-v1_1"' in text
    assert " -name " not in text


@pytest.mark.parametrize(
    ("env_id", "extras"),
    [
        ("HalfCheetah-v5", "zoo,export"),
        ("sb3_trl/ReacherSparse5-v0", "zoo,export"),
        ("sb3_trl/CartPoleNoVel-v1", "zoo,export"),
        ("sb3_trl/MetaWorldReach-v0", "zoo,export,metaworld"),
        ("sb3_trl/MetaWorldMT10-v0", "zoo,export,metaworld"),
        ("sb3_trl/MiniGridDoorKey5x5-v0", "zoo,export,pixels"),
        ("sb3_trl/POPGymAutoencodeEasy-v0", "zoo,export,pixels"),
        ("sb3_trl/VizdoomBasic-v0", "zoo,export,pixels"),
    ],
)
def test_what_is_to_be_installed(env_id, extras):
    assert install(env_id) == f'pip install "sb3-trl[{extras}]"'


def test_atari_games_come_with_pixels():
    gym.register_envs(pytest.importorskip("ale_py"))
    assert install("ALE/Pong-v5") == install("PongNoFrameskip-v4") == 'pip install "sb3-trl[zoo,export,pixels]"'


# --- settings ---


def test_settings_are_read_back(tmp_path):
    given = {"policy": "MlpPolicy", "n_timesteps": 1e6, "learning_rate": "lin_1e-4", "mean_bound": 3e-5, "n_envs": 4}
    name, text = settings_file("Pendulum-v1", given)
    (tmp_path / name).write_text(text)
    assert read_settings("trpl", "Pendulum-v1", str(tmp_path / name)) == given


def test_what_a_search_has_found_is_read_back(tmp_path):
    policy_kwargs = {"net_arch": {"pi": [64, 64], "vf": [64]}, "activation_fn": nn.Tanh, "init_std": 0.5}
    name, text = settings_file("Pendulum-v1", {"policy": "MlpPolicy", "n_timesteps": 1, "policy_kwargs": policy_kwargs})
    (tmp_path / name).write_text(text)
    read = read_settings("trpl", "Pendulum-v1", str(tmp_path / name))["policy_kwargs"]
    assert eval(read, {"nn": nn}) == policy_kwargs


def test_objects_go_into_a_file_in_python():
    class Activation(nn.Module):
        pass

    given = {"policy": "MlpPolicy", "policy_kwargs": {"activation_fn": Activation}}
    name, text = settings_file("Pendulum-v1", given)
    assert name == "settings.py"
    assert text.startswith("hyperparams = {'Pendulum-v1': {'policy': 'MlpPolicy'")
    assert "Activation" in text
