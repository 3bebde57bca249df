"""Every command of ``sb3-trl`` on a small task: the files it leaves, and what is in them."""

import argparse
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import matplotlib.pyplot as plt
import numpy as np
import pytest

pytest.importorskip("rl_zoo3")

from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.monitor import load_results
from support import call, event_file

from sb3_trl.cli import COMMANDS
from sb3_trl.zoo import scripts
from sb3_trl.zoo.experiment import Experiment

from .cases import ALGORITHMS, ENV, SMALL, frames, mean_reward


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


@pytest.mark.parametrize(
    ("env_id", "drawn"),
    [("sb3_trl/VizdoomBasic-v0", True), ("MiniGrid-DoorKey-5x5-v0", True), ("CartPole-v1", False), (ENV, False)],
)
def test_actions_are_drawn_in_games_of_screens(tmp_path, monkeypatch, env_id, drawn):
    if env_id.startswith("MiniGrid"):
        pytest.importorskip("minigrid")
    experiment = Experiment(argparse.Namespace(), "recurrent_trpl", env_id, str(tmp_path))
    assert experiment.deterministic_eval is not drawn
    of_the_zoo, asked = ExperimentManager.is_minigrid(env_id), []

    def ask(*args, **kwargs):
        asked.append(ExperimentManager.is_minigrid(env_id))
        raise KeyboardInterrupt

    monkeypatch.setattr("runpy.run_module", ask)
    monkeypatch.setattr("rl_zoo3.enjoy.enjoy", ask)
    for command in ("enjoy", "record-video", "push-to-hub"):
        with pytest.raises(KeyboardInterrupt):
            COMMANDS[command].run()
    assert asked == [drawn] * 3
    assert ExperimentManager.is_minigrid(env_id) is of_the_zoo


def call_elsewhere(line: str, folder: Path, **environment: str) -> str:
    """Run ``sb3-trl`` in a process of its own and return what it printed."""
    command = [sys.executable, "-m", "sb3_trl.cli", *line.split()]
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def children(monkeypatch):
    """The commands that a command starts, which run in this process: the imports of another take seconds."""
    started, original = [], subprocess.call

    def call_here(command: list[str], **kwargs) -> int:
        if command[:3] != [sys.executable, "-m", "sb3_trl.cli"]:
            return original(command, **kwargs)
        started.append(command[3])
        call(" ".join(command[3:]))
        return 0

    monkeypatch.setattr(subprocess, "call", call_here)
    return started


# --- training ---


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_train(folder, algo):
    for run, seed in (("_1", 0), ("_2", 1)):
        logs = folder / "logs" / algo / f"{ENV}{run}"
        model = ALGORITHMS[algo].load(logs / f"{ENV}.zip", device="cpu")
        assert (model.seed, model.n_steps, model.num_timesteps) == (seed, 200, 2000)
        assert np.load(logs / "evaluations.npz")["results"].shape == (2, 2)
        assert len(load_results(str(logs))) == 2000 // 200
    assert (folder / "logs" / algo / f"{ENV}_2" / "rl_model_2000_steps.zip").is_file()


@pytest.mark.parametrize(
    ("algo", "conf_file", "name"),
    [
        ("ppo", "ppo_v5.yml", "PPO"),
        ("lean_ppo", "ppo_v5.yml", "LeanPPO"),
        ("trpo", "trpo_v5.yml", "TRPO"),
        ("lean_trpo", "trpo_v5.yml", "LeanTRPO"),
    ],
)
def test_other_algorithms_log_their_trust_region_too(tmp_path, monkeypatch, algo, conf_file, name):
    monkeypatch.chdir(tmp_path)
    small = "-params n_envs:1 n_steps:64 batch_size:32"
    line = f"train --algo {algo} --conf-file {conf_file} --env HalfCheetah-v5 -n 192 --eval-freq -1 --device cpu"
    call(f"{line} --tensorboard-log runs {small}")
    events = event_file(tmp_path / "runs" / "HalfCheetah-v5" / f"{name}_1")
    largest = [event.value for event in events.Scalars("trust_region/kl_max")]
    assert len(largest) == 2, "after every update but the last"
    assert min(largest) > 0
    assert "custom_scalars__config__" in events.Tags()["tensors"]


# --- agents at work ---


@pytest.mark.parametrize("which", ["", "--exp-id 1", "--load-best", "--load-checkpoint 2000"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_enjoy(folder, capsys, algo, which):
    call(f"enjoy --algo {algo} --env {ENV} -f logs -n 600 --no-render --reward-log returns {which}")
    printed = capsys.readouterr().out
    assert "3 Episodes" in printed
    assert mean_reward(printed) == pytest.approx(load_results("returns")["r"].mean(), abs=0.01)


def test_benchmark(folder, children):
    call("benchmark --log-dir logs --no-hub -n 400 --num-threads 1")
    assert children == ["enjoy"] * 2
    table = (folder / "benchmark.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("|")]
    assert rows[0][:4] == ["algo", "env_id", "mean_reward", "std_reward"]
    assert [row[:2] for row in rows[2:]] == [["fixpo", ENV], ["trpl", ENV]]
    for algo, _, mean, _, _, steps, episodes in rows[2:]:
        returns = load_results(f"logs/benchmark/{algo}-{ENV}")["r"]
        assert float(mean) == pytest.approx(returns.mean(), abs=0.01)
        assert (int(steps), int(episodes)) == (400, len(returns)) == (400, 2)


# --- videos ---


def test_record_video(folder):
    call(f"record-video --algo fixpo --env {ENV} -f logs -n 60")
    (path,) = folder.rglob("*.mp4")
    assert path.parent == folder / "logs" / "fixpo" / f"{ENV}_2" / "videos"
    pictures = frames(path)
    assert 60 <= len(pictures) <= 62
    assert pictures.shape[1:] == (500, 500, 3)
    assert np.abs(np.diff(pictures.astype(float), axis=0)).max() > 100, "the pendulum moves"


def test_record_video_of_a_mujoco_task(tmp_path, monkeypatch):
    """Rendered without a screen; the environment has the arguments of the file that it was trained with."""
    small = "-params n_steps:64 batch_size:32 n_epochs:1 n_critic_epochs:1"
    monkeypatch.chdir(tmp_path)
    call(f"train --algo trpl --env Ant-v5 -n 64 --eval-freq -1 --device cpu {small}")
    call_elsewhere("record-video --algo trpl --env Ant-v5 -f logs -n 8", tmp_path, MUJOCO_GL="egl")
    (path,) = tmp_path.rglob("*.mp4")
    pictures = frames(path)
    assert 8 <= len(pictures) <= 10
    assert pictures[0].std() > 10, "not a black picture"
    assert np.abs(np.diff(pictures.astype(float), axis=0)).max() > 50, "the ant moves"


def test_record_training(folder, children):
    call(f"record-training --algo trpl --env {ENV} -f logs -n 20 --gif")
    assert children == ["record-video"] * 3
    videos = folder / "logs" / "trpl" / f"{ENV}_2" / "videos"
    names = {path.name.partition("-step-")[0] for path in videos.glob("*.mp4")}
    steps = {"checkpoint-2000", "final-model", "best-model"}
    assert names == {f"{step}-trpl-{ENV}" for step in steps} | {"training.mp4"}
    parts = [frames(path) for path in videos.glob("*-step-*.mp4")]
    film = frames(videos / "training.mp4")
    assert len(film) == pytest.approx(sum(map(len, parts)), abs=3)
    assert np.abs(film[0, :40].astype(float) - parts[0][0, :40]).max() > 50, "each part says what it shows"
    assert len(frames(videos / "training.gif")) > 10


# --- plots ---


@pytest.fixture
def figures(monkeypatch):
    """Return the figures that a command has drawn."""
    close = plt.close
    close("all")
    monkeypatch.setattr(plt, "close", lambda *args: None)

    def take() -> list[plt.Figure]:
        drawn = [plt.figure(number) for number in plt.get_fignums()]
        close("all")
        return drawn

    yield take
    close("all")


def test_plot_train(folder, capsys, figures):
    call(f"plot-train -a trpl -e {ENV} -f logs -w 4")
    (figure,) = figures()
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert lines.keys() == {f"{ENV}_1", f"{ENV}_2"}
    for run, drawn in lines.items():
        returns = load_results(f"logs/trpl/{run}")["r"].to_numpy()
        np.testing.assert_allclose(drawn, np.convolve(returns, np.ones(4) / 4, mode="valid"))
    if plt.get_backend() == "agg":
        assert "saved to Training_Episodic_Reward.png" in capsys.readouterr().out
        assert imageio.imread("Training_Episodic_Reward.png").std() > 10


def test_all_plots_and_plot_from_file(folder, capsys, figures):
    call(f"all-plots -a trpl fixpo -e {ENV} -f logs -o results")
    results = pickle.loads(Path("results.pkl").read_bytes())
    means = {}
    for algo in ALGORITHMS:
        runs = [np.load(path)["results"] for path in Path("logs", algo).glob("*/evaluations.npz")]
        means[algo.upper()] = np.mean(runs, axis=(0, 2))
        np.testing.assert_allclose(results[ENV][f"{algo.upper()}-logs"]["mean"], means[algo.upper()])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"|{ENV}"))
    assert [float(x) for x in re.findall(r"(-?\d+) \+/-", row)] == [round(mean[-1]) for mean in means.values()]
    (figure,) = figures()
    assert len(figure.axes[0].lines) == 2

    call("plot-from-file -i results -o scores.png --format png")
    assert imageio.imread("scores.png").std() > 10
    curves, scores = figures()
    for line in curves.axes[0].lines:
        np.testing.assert_allclose(line.get_ydata(), means[line.get_label().removesuffix("-logs")])
    bars = sorted(patch.get_height() for patch in scores.axes[0].patches if patch.get_height() != 0)
    np.testing.assert_allclose(bars, sorted(mean[-1] for mean in means.values()))


def test_plot_from_file_needs_two_runs(folder, capsys):
    shutil.rmtree(folder / "logs" / "trpl" / f"{ENV}_2")
    call(f"all-plots -a trpl -e {ENV} -f logs -o results --no-display")
    with pytest.raises(SystemExit):
        call("plot-from-file -i results")
    assert "fewer than two runs" in capsys.readouterr().err


def test_a_missing_folder_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        call(f"plot-train -a trpl -e {ENV} -f logs")
    assert "No such file or directory: 'logs/trpl'" in capsys.readouterr().err


# --- Weights & Biases ---


def test_tracked_runs_have_the_trust_region(tmp_path):
    """In a process of its own: wandb changes TensorBoard's writers for good. Nothing is sent: the run is offline."""
    pytest.importorskip("wandb")
    line = f"train --algo trpl --env {ENV} -n 600 --eval-freq -1 --device cpu --track {SMALL['trpl']}"
    call_elsewhere(line.replace("n_envs:2", "n_envs:1"), tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    written = path.read_bytes()
    for key in ("trust_region/kl_mean", "trust_region/kl_bound", "trust_region/projected_fraction"):
        assert key.encode() in written, key
