"""The page that ``sb3-trl push-to-hub`` writes for an agent: how it is played, loaded and trained again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from pprint import pformat
from typing import Any, NamedTuple

import gymnasium as gym
import yaml
from huggingface_sb3 import EnvironmentName, ModelName
from torch import nn

from sb3_trl.version import __version__

__all__ = ["Agent", "install", "model_card", "settings_file"]

#: Modules of environments that need more than the RL Zoo, by the extra that brings it.
EXTRAS = {
    "sb3_trl.envs.metaworld": "metaworld",
    "sb3_trl.envs.grids": "pixels",
    "sb3_trl.envs.cards": "pixels",
    "sb3_trl.envs.doom": "pixels",
    "ale_py": "pixels",
    "shimmy.atari_env": "pixels",
}


class Agent(NamedTuple):
    """What an uploaded agent is called.

    :param algo: Key of the RL Zoo, such as ``"trpl"``.
    :param env_id: Gymnasium's id.
    :param organization: Whose it is on the hub.
    :param repo: Name of its repository.
    """

    algo: str
    env_id: str
    organization: str
    repo: str

    @property
    def name(self) -> EnvironmentName:
        """The id as folders and files have it."""
        return EnvironmentName(self.env_id)

    @property
    def words(self) -> str:
        """The flags that every command needs."""
        return f"--algo {self.algo} --env {self.env_id}"


def model_card(agent: Agent, algorithm: str, folder: Path) -> str:
    """Return the Markdown of the page; the settings are written beside it, as a file for ``--conf-file``.

    :param agent: What it is called.
    :param algorithm: Name of the algorithm's class.
    :param folder: What will be uploaded, complete but for the page.
    """
    arguments = yaml.unsafe_load((folder / "args.yml").read_text())
    hyperparams = dict(yaml.unsafe_load((folder / "config.yml").read_text()))
    if arguments["env_kwargs"]:
        hyperparams["env_kwargs"] = dict(arguments["env_kwargs"])
    results = json.loads((folder / "results.json").read_text())
    file, settings = settings_file(agent.env_id, hyperparams)
    (folder / file).write_text(settings)
    sections = [
        f"# **{algorithm}** on **{agent.env_id}**",
        *_results(agent, algorithm, folder, results),
        "## Play",
        _block("bash", _commands(agent, arguments)),
        _block("python", _program(agent, hyperparams, arguments["gym_packages"], results["is_deterministic"])),
        "Agents are pickled: loading one runs code that its author chose, and `TRUST_REMOTE_CODE=True` says that you "
        "trust it.",
        "## Train",
        _training(agent, arguments, hyperparams, file),
        f"`{file}`, which lies beside this page:",
        _block(Path(file).suffix.replace(".yml", ".yaml")[1:], settings),
    ]
    return "\n\n".join(sections) + "\n"


def install(env_id: str) -> str:
    """Return the command that installs what the page's commands need for an agent of an environment."""
    entry_point = str(gym.spec(env_id).entry_point)
    extras = ["zoo", "export", *{extra for module, extra in EXTRAS.items() if entry_point.startswith(module)}]
    return f'pip install "sb3-trl[{",".join(extras)}]"'


def settings_file(env_id: str, hyperparams: dict[str, Any]) -> tuple[str, str]:
    """Return name and text of a file that ``--conf-file`` takes, with the settings of one environment.

    Classes of ``torch.nn`` among the policy's arguments, which a search puts there, become ``nn.Tanh`` in a string,
    which the RL Zoo evaluates. Other Python objects cannot stand in YAML: they came from a file in Python, and go
    into one.

    :param env_id: Gymnasium's id.
    :param hyperparams: As the RL Zoo saved them.
    """
    plain = dict(hyperparams)
    if "nn." in (policy_kwargs := _expression(plain.get("policy_kwargs"))):
        plain["policy_kwargs"] = policy_kwargs
    try:
        return "settings.yml", yaml.safe_dump({env_id: plain}, sort_keys=True)
    except yaml.representer.RepresenterError:
        return "settings.py", f"hyperparams = {pformat({env_id: hyperparams})}  # import what stands in <>\n"


def _expression(value: Any) -> str:
    """Return a value as Python, with classes of ``torch.nn`` under the name that they have in the RL Zoo's files."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_expression(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_expression, value)) + "]"
    of_torch = isinstance(value, type) and getattr(nn, value.__name__, None) is value
    return f"nn.{value.__name__}" if of_torch else repr(value)


def _results(agent: Agent, algorithm: str, folder: Path, results: dict[str, Any]) -> list[str]:
    """Return what the agent is, what it reached, and its film where there is one."""
    steps = json.loads((folder / ModelName(agent.algo, agent.name) / "data").read_text())["num_timesteps"]
    kind = "deterministic" if results["is_deterministic"] else "drawn"
    parts = [
        f"{algorithm} after {steps:,} environment steps, trained with `sb3-trl` {__version__}: trust-region algorithms "
        "for [Stable-Baselines3](https://github.com/DLR-RM/stable-baselines3) and its "
        "[RL Zoo](https://github.com/DLR-RM/rl-baselines3-zoo).",
        f"Return: **{results['mean_reward']:.2f} ± {results['std_reward']:.2f}** (mean and standard deviation of "
        f"{results['n_eval_episodes']} episodes, actions {kind}).",
    ]
    if (folder / "replay.mp4").is_file():
        parts.append('<video controls autoplay loop muted src="replay.mp4"></video>')
    return parts


def _commands(agent: Agent, arguments: dict[str, Any]) -> str:
    named = "" if agent.repo == ModelName(agent.algo, agent.name) else f" -name {agent.repo}"
    packages = _packages(arguments)
    commands = [
        install(agent.env_id),
        f"TRUST_REMOTE_CODE=True sb3-trl load-from-hub {agent.words} -orga {agent.organization}{named} -f downloaded",
        f"sb3-trl enjoy {agent.words} -f downloaded{packages}",
        f"sb3-trl record-video {agent.words} -f downloaded",
        f"sb3-trl export {agent.words} -f downloaded --format onnx{packages}",
    ]
    # The RL Zoo films only environments that it finds by itself.
    return "\n".join(command for command in commands if not (packages and "record-video" in command))


def _program(agent: Agent, hyperparams: dict[str, Any], packages: list[str], deterministic: bool) -> str:
    drawn = "" if deterministic else ", deterministic=False"
    env_kwargs = f", env_kwargs={hyperparams['env_kwargs']!r}" if hyperparams.get("env_kwargs") else ""
    imports = "".join(f"import {package}\n" for package in ("rl_zoo3.import_envs", *packages))
    return f"""\
{imports}from rl_zoo3 import ALGOS, create_test_env, get_saved_hyperparams
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trl.zoo import register

register()
run = "downloaded/{agent.algo}/{agent.name}_1"
settings, statistics = get_saved_hyperparams(f"{{run}}/{agent.name}", test_mode=True)
env = create_test_env(
    "{agent.env_id}", stats_path=statistics, should_render=False, hyperparams=settings{env_kwargs}
)
model = ALGOS["{agent.algo}"].load(f"{{run}}/{agent.name}.zip", env=env)
mean, std = evaluate_policy(model, env{drawn})
print(f"return {{mean:.2f}} ± {{std:.2f}}")"""


def _training(agent: Agent, arguments: dict[str, Any], hyperparams: dict[str, Any], file: str) -> str:
    steps = arguments["n_timesteps"] if arguments["n_timesteps"] > 0 else int(hyperparams["n_timesteps"])
    command = f"sb3-trl train {agent.words} --conf-file {file} -n {steps} --seed {arguments['seed']}"
    before = ""
    if arguments["trained_agent"]:
        command += " -i agent.zip"
        before = "The training went on with an agent that was there already, here `agent.zip`.\n\n"
    return before + _block("bash", command + _packages(arguments))


def _packages(arguments: dict[str, Any]) -> str:
    packages = arguments["gym_packages"]
    return f" --gym-packages {shlex.join(packages)}" if packages else ""


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"
