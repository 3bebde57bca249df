"""The ``sb3-trl`` command: help, settings, errors, and the processes that it starts."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecNormalize
from support import PointEnv, vec_env

pytest.importorskip("rl_zoo3")

import optuna
from rl_zoo3.exp_manager import ExperimentManager

from sb3_trl import TRPL, cli
from sb3_trl.zoo import hyperparameter_file, scripts
from sb3_trl.zoo.experiment import find_configuration
from sb3_trl.zoo.registry import SETTINGS_OF, algorithms
from sb3_trl.zoo.samplers import CONVERTERS, SAMPLERS

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
    code, out, _ = run(f"train --algo=trpl --conf-file=my.yml {SHORT}")
    assert code == 0
    assert "Loading hyperparameters from: my.yml" in out
    model = TRPL.load(tmp_path / "logs" / "trpl" / "Pendulum-v1_1" / "Pendulum-v1.zip", device="cpu")
    assert model.learning_rate(0.5) == 5e-4
    assert (model.critic_learning_rate, model.mean_bound) == ("lin_1e-3", "lin_0.05")


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
        ("train --algo trpl --env CartPole-v1 -n 64", "needs a Box action space"),
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
    command = f"train --algo trpl --env Pendulum-v1 -n 100000 --eval-freq -1 --device cpu -params {SMALL}"
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


# --- other processes, and the search for hyperparameters ---


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise there")
def test_whoever_reads_the_output_may_stop_early(tmp_path):
    command = [sys.executable, "-m", "sb3_trl.cli", "reproduce", "--list"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 1)


def test_scripts_of_the_zoo_start_the_command(monkeypatch):
    calls = []
    monkeypatch.setattr(subprocess, "call", lambda command, **kwargs: calls.append(command) or 0)
    original = subprocess.call
    with scripts.children_know_the_algorithms():
        subprocess.call(["python", "-m", "rl_zoo3.record_video", "--algo", "trpl"])
        subprocess.call(["python", "enjoy.py", "--algo", "trpl"])
        subprocess.call(["ls", "-l"])
    start = [sys.executable, "-m", "sb3_trl.cli"]
    assert calls == [[*start, "record-video", "--algo", "trpl"], [*start, "enjoy", "--algo", "trpl"], ["ls", "-l"]]
    assert subprocess.call is original


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("key", SAMPLERS)
def test_every_sample_makes_a_model(key):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        params = SAMPLERS[key](trial, 1, 1, {})
        model = algorithms()[key]("MlpPolicy", "Pendulum-v1", device="cpu", **params)
        assert model.batch_size <= model.n_steps or key in SETTINGS_OF, "whose search is the RL Zoo's"
        assert CONVERTERS[key](trial.params) == params
        if key == "trpl":
            assert model.policy.action_dist.init_std == trial.params["init_std"]


def test_every_algorithm_can_be_searched():
    assert SAMPLERS.keys() == CONVERTERS.keys() == algorithms().keys()


def test_search(run, monkeypatch, tmp_path):
    sample = SAMPLERS["trpl"]
    monkeypatch.setitem(SAMPLERS, "trpl", lambda *arguments: sample(*arguments) | {"n_steps": 512, "n_epochs": 1})
    line = f"train --algo trpl {SHORT} -optimize --n-trials 1 --n-evaluations 1 --no-optim-plots -params n_envs:1"
    code, out, _ = run(line)
    assert code == 0
    assert "trust_region_coef" in out
    assert len(list((tmp_path / "logs" / "trpl").glob("report_*.csv"))) == 1
