"""The ``sb3-trl`` command: help, settings, errors, and the processes that it starts."""

import os
import re
import shlex
import signal
import subprocess
import sys
from importlib.metadata import entry_points

import gymnasium as gym
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecNormalize
from support import PointEnv, vec_env

pytest.importorskip("rl_zoo3")

from rl_zoo3.exp_manager import ExperimentManager

from sb3_trl import TRPL, cli

SHORT = "--env Pendulum-v1 -n 64 --eval-freq -1 --device cpu --seed 0"
SMALL = "n_envs:1 n_steps:64 batch_size:32 n_epochs:1 n_critic_epochs:1"


# --- help ---


@pytest.mark.parametrize("line", ["", "--help", "-h", "help"])
def test_help_lists_every_command(run, line):
    code, out, _ = run(line)
    assert code == 0
    for name, command in cli.COMMANDS.items():
        assert f"{name} " in out
        assert command.summary in out


def test_help_is_quick():
    code = "import sys; from sb3_trl.cli import main; main(); sys.exit(bool({'torch', 'rl_zoo3'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, check=True)


def test_version(run):
    assert run("--version")[1].startswith("sb3-trl 0.")


@pytest.mark.parametrize("name", ["train", "enjoy", "plot-train", "all_plots", "plot-from-file", "record-video"])
def test_flags_are_those_of_the_zoo(run, name):
    code, out, _ = run(f"{name} --help")
    assert code == 0
    assert f"sb3-trl {name.replace('_', '-')}" in out or name in ("plot-train", "all_plots", "plot-from-file")
    if "plot" not in name:
        assert "trpl" in out, "among the choices of --algo"


# --- settings ---


@pytest.mark.parametrize(("flag", "threads"), [("", 1), ("--num-threads 2", 2)])
def test_threads(run, monkeypatch, flag, threads):
    seen = []
    monkeypatch.setattr(ExperimentManager, "setup_experiment", lambda self: seen.append(th.get_num_threads()))
    monkeypatch.setattr(ExperimentManager, "hyperparameters_optimization", lambda self: None)
    th.set_num_threads(2)
    assert run(f"train --algo trpl {SHORT} {flag}")[0] == 0
    assert seen == [threads]


# --- errors ---


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian", "there is no command 'trian', did you mean 'train'?"),
        (f"train --algo trlp {SHORT}", "there is no algorithm 'trlp', did you mean 'tr"),
        (f"train --algo=nothing {SHORT}", "there is no algorithm 'nothing'. Known: a2c"),
        ("train --algo trpl --env Pendulm-v1", "you maybe meant Pendulum-v1?"),
        ("train --algo trpl --env DoesNotExist-v0", "not found in gym registry. Packages that bring environments"),
        ("train --algo trpl --env HalfCheetah-v3", "Use the v5 task."),
        ("train --algo papi --env CartPole-v1 -n 64", "needs a Box action space"),
        (f"train --algo trpl {SHORT} --conf-file trpl_papr.yml", "the package has only"),
        (f"train --algo trpl {SHORT} --conf-file bad.yml", "bad.yml is not valid YAML"),
        (f"train --algo trpl {SHORT} --conf-file binary.yml", "binary.yml is not valid YAML"),
        (f"train --algo trpl {SHORT} --conf-file empty.yml", "empty.yml must map environment ids"),
        (f"train --algo trpl {SHORT} --conf-file list.yml", "list.yml must map environment ids"),
        (f"train --algo trpl {SHORT} --conf-file short.yml", "short.yml has no 'n_timesteps' for Pendulum-v1"),
        (f"train --algo trpl {SHORT} --conf-file other.yml", "Hyperparameters not found for trpl-Pendulum-v1"),
        (f"train --algo trpl {SHORT} -params n_epoch:3", "no hyperparameter 'n_epoch', did you mean 'n_epochs'?"),
        (f"train --algo ppo {SHORT} -params mean_bound:3", "ppo has no hyperparameter 'mean_bound'"),
        (f"train --algo trpl {SHORT} -params projection:w2", "a string has quotes"),
        (f"train --algo trpl {SHORT} -params projection:'w3'", "choose one of"),
        (f"train --algo trpl {SHORT} -params mean_bound:-1", "must be positive"),
        (f"train --algo trpl {SHORT} -params batch_size:100000", "Decrease batch_size"),
        (f"train --algo trpl {SHORT} --gym-packages no_such_package", "No module named 'no_such_package'"),
        (f"train --algo trpl {SHORT} -i no_such_agent.zip", "must be a valid path"),
        ("enjoy --algo trpl --env Pendulum-v1 -f nowhere", "nowhere/trpl folder was not found"),
    ],
)
def test_errors_say_what_to_change(run, tmp_path, line, message):
    for name, content in {
        "bad": "a: [",
        "empty": "",
        "list": "- x",
        "short": "Pendulum-v1: {policy: MlpPolicy}",
        "other": "Ant-v5: {policy: MlpPolicy, n_timesteps: 1}",
    }.items():
        (tmp_path / f"{name}.yml").write_text(content)
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    code, _, err = run(line)
    assert code == 2
    assert message in err
    assert err.startswith("sb3-trl")
    assert "Traceback" not in err


def test_a_traceback_on_request(run):
    with pytest.raises(ValueError, match="mean_bound"):
        run(f"train --algo trpl {SHORT} --verbose 2 -params mean_bound:-1")


class FailingEnv(PointEnv):
    """Fails in the middle of training."""

    def step(self, action):
        raise ValueError("the simulator broke")


def test_errors_in_training_keep_their_traceback(run):
    gym.register("Failing-v0", FailingEnv)
    with pytest.raises(ValueError, match="the simulator broke"):
        run(f"train --algo trpl --env Failing-v0 -n 64 --eval-freq -1 --device cpu -params normalize:False {SMALL}")
    gym.registry.pop("Failing-v0")


def test_without_the_zoo(run, monkeypatch):
    for name in ("rl_zoo3", "rl_zoo3.utils", "rl_zoo3.hyperparams_opt"):
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = run("train --algo trpl")
    assert code == 2
    assert err.strip().endswith('pip install "sb3-trl[zoo]"')
    assert len(err.strip().splitlines()) == 1


def test_interrupted_training_saves_its_model(run, monkeypatch, tmp_path):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(TRPL, "train", interrupt)
    assert run(f"train --algo trpl {SHORT} -params {SMALL}")[0] == 0
    assert (tmp_path / "logs" / "trpl" / "Pendulum-v1_1" / "Pendulum-v1.zip").is_file()


def test_an_interrupted_training_goes_on(run, tmp_path):
    """Ctrl-C in a real process; then the command that it printed, with fewer steps."""
    start = [sys.executable, "-u", "-m", "sb3_trl.cli"]
    command = f"train --algo trpl --env Pendulum-v1 -n 100000 --eval-freq -1 --device cpu -params {SMALL} compile:False"
    process = subprocess.Popen(
        [*start, *command.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in the background
    )
    for line in process.stdout:
        if "explained_variance" in line:
            process.send_signal(signal.SIGINT)
            break
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    steps, total = map(int, re.search(r"Training ended after (\d+) of (\d+) steps. To go on:", printed).groups())
    assert 64 <= steps < total == 100_000
    words = shlex.split(printed.strip().splitlines()[-1])
    assert words[-1] == str(total - steps)

    assert run([*words[1:-1], "64"])[0] == 0
    logs = tmp_path / "logs" / "trpl"
    first, second = (TRPL.load(logs / f"Pendulum-v1_{i}" / "Pendulum-v1.zip", device="cpu") for i in (1, 2))
    assert first.num_timesteps == steps
    assert second._n_updates == first._n_updates + 1
    moments = [model.policy.optimizer.state_dict()["state"][0]["step"] for model in (first, second)]
    assert moments[1] == moments[0] + 2, "Adam went on, with the two minibatches of one epoch"
    counts = [
        VecNormalize.load(logs / f"Pendulum-v1_{i}" / "Pendulum-v1" / "vecnormalize.pkl", vec_env()).obs_rms.count
        for i in (1, 2)
    ]
    assert counts[1] > counts[0] > steps


def test_an_interrupt_before_training_ends_quietly(run, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(ExperimentManager, "setup_experiment", interrupt)
    code, _, err = run(f"train --algo trpl {SHORT}")
    assert (code, err) == (130, "")


# --- other processes ---


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise there")
def test_whoever_reads_the_output_may_stop_early(tmp_path):
    command = [sys.executable, "-m", "sb3_trl.cli", "reproduce", "--list"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 1)


def test_the_command_is_installed():
    (script,) = entry_points(group="console_scripts", name="sb3-trl")
    assert script.load() is cli.main
