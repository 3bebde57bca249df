"""Every example runs, with few steps and epochs, and does what it says."""

import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as imageio
import numpy as np
import optuna
import pytest
import torch as th
import yaml
from matplotlib.image import imread
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from support import ROOT, event_file, load_example

from sb3_trl import TRPL
from sb3_trl.algorithms.base import TrustRegionAlgorithm
from sb3_trl.papers.interpolation import PROJECTIONS, gaussian, interpolate
from sb3_trl.projections import Gaussian

FOLDER = ROOT / "examples"


def call_example(patch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    """Run an example's ``main`` as if from the command line, with few epochs."""

    def with_few_epochs(learn):
        def call(model, *args, **kwargs):
            model.n_epochs, model.n_critic_epochs = 3, 1
            return learn(model, *args, **kwargs)

        return call

    for algorithm in (TrustRegionAlgorithm, PPO):
        patch.setattr(algorithm, "learn", with_few_epochs(algorithm.learn))
    patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    load_example(name).main()


@pytest.fixture
def run(capsys):
    """Run an example, and return what it printed."""

    def call(name: str, *arguments: object) -> str:
        with pytest.MonkeyPatch.context() as patch:
            call_example(patch, name, *arguments)
        return capsys.readouterr().out

    return call


class Trained(NamedTuple):
    """What ``train`` leaves: its folder, what it printed, and the examples that it starts."""

    folder: Path
    printed: str
    started: dict[str, list[str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short training on a task with small pictures; nothing is drawn."""
    folder, started = tmp_path_factory.mktemp("trained"), {}

    def not_now(command, **_):
        started[Path(command[1]).name] = command
        return subprocess.CompletedProcess(command, 0, "", "")

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setattr(subprocess, "run", not_now)
        arguments = ("--env", "InvertedPendulum-v5", "--timesteps", 6144, "--seed", 1, "--film", 20)
        call_example(patch, "train", *arguments, "--out", folder)
    return Trained(folder, printed.getvalue(), started)


def start(command: list[str]) -> str:
    """Start a process in which MuJoCo finds a driver by itself, and return what it printed."""
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "MUJOCO_GL")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def number(pattern: str, text: str) -> float:
    match = re.search(pattern + r"\s*(-?[\d.]+(?:e-?\d+)?)", text)
    assert match, f"{pattern!r} is not in\n{text}"
    return float(match.group(1))


def test_every_example_has_a_test():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in FOLDER.glob("*.py")} <= tests


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_the_command_in_its_docstring(path):
    lines = [line.strip() for line in load_example(path.stem).__doc__.splitlines()]
    assert f"python examples/{path.name}" in [line.partition(" --")[0] for line in lines]


def test_train(trained):
    folder, printed, started = trained
    assert re.search(r"6144 steps +return +-?\d+", printed)
    assert re.search(r"return -?[\d.]+ \+- [\d.]+ over 10 episodes", printed)
    assert f"--logdir {folder / 'tensorboard'}" in printed
    assert re.search(rf"^Curves: +{folder / 'curves.png'}$", printed, re.MULTILINE)
    assert re.search(rf"^Film: +{folder / 'film.mp4'}$", printed, re.MULTILINE)
    start(started["curves.py"])
    assert imread(folder / "curves.png")[..., :3].std() > 0.05
    assert list((folder / "tensorboard" / "TRPL_1").glob("events*"))
    env = VecNormalize.load(str(folder / "vecnormalize.pkl"), make_vec_env("InvertedPendulum-v5"))
    model = TRPL.load(folder / "model.zip", env=env, device="cpu")
    assert model.num_timesteps == 6144
    assert env.obs_rms.count > 6144


@pytest.mark.parametrize(
    "script", ["import sys; sys.exit('no driver')", "import os; os.abort()", "raise OSError('no driver')"]
)
def test_train_does_not_fail_where_nothing_can_be_drawn(script, tmp_path, capsys):
    train = load_example("train")
    broken = tmp_path / "broken.py"
    broken.write_text(script)
    train.show("Film", broken, tmp_path / "film.mp4")
    printed = capsys.readouterr().out
    assert printed.startswith("Film:       none, examples/broken.py cannot do it on this machine: ")
    assert ("no driver" in printed) == ("no driver" in script)


def test_a_film_without_a_driver(monkeypatch, tmp_path, capsys):
    """The sentence has the words of whoever could not draw."""
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    load_example("train").show("Film", "film.py", tmp_path / "film.mp4", "--run", tmp_path)
    assert re.search("Film: +none, .*nonsense", capsys.readouterr().out)


def test_curves(run, trained, tmp_path):
    printed = run("curves", "--run", trained.folder, "--out", tmp_path / "curves.png")
    assert number("curves.png:", printed) == 2
    assert 0 < number("which moved the policy by", printed) < 1
    assert imread(tmp_path / "curves.png")[..., :3].std() > 0.05


def test_curves_of_a_run_too_short(run, monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "", ""))
    run("train", "--env", "InvertedPendulum-v5", "--timesteps", 64, "--out", tmp_path, "--film", 0)
    with pytest.raises(SystemExit, match="shorter than two updates"):
        run("curves", "--run", tmp_path, "--out", tmp_path / "curves.png")
    with pytest.raises(SystemExit, match="no run in"):
        run("curves", "--run", tmp_path / "elsewhere")


def test_the_settings_of_train_are_those_of_the_zoo():
    train = load_example("train")
    entry = yaml.safe_load((FOLDER.parent / "hyperparams" / "trpl.yml").read_text())["HalfCheetah-v5"]
    entry["policy_kwargs"] = eval(entry["policy_kwargs"])
    assert entry.pop("normalize") is True
    assert entry.pop("n_envs") == train.N_ENVS
    assert entry.pop("policy") == "MlpPolicy"
    entry.pop("n_timesteps")
    assert entry == train.SETTINGS


def test_evaluate(run, trained):
    arguments = ("--run", trained.folder, "--env", "InvertedPendulum-v5", "--episodes", 3)
    printed = run("evaluate", *arguments)
    assert printed == run("evaluate", *arguments), "the statistics of the observations stand still"
    # A reward of 1 for every step that it stands: returns are lengths, and the settings normalise rewards.
    assert number("deterministic +return", printed) >= 3
    assert number("stochastic +return", printed) >= 3


def test_film(trained):
    """In a process of its own, as ``train`` starts it: MuJoCo chooses how to draw when it is imported."""
    assert number("reward", start(trained.started["film.py"])) == pytest.approx(1, abs=0.2)
    frames = np.stack(list(imageio.imiter(trained.folder / "film.mp4"))).astype(float)
    assert frames.shape[0] == 20
    assert frames[0].std() > 10
    assert np.ptp(frames, axis=0).max() > 50, "something moves"


def test_tune(run, tmp_path):
    storage = f"sqlite:///{tmp_path}/search.db"
    arguments = ("--timesteps", 1024, "--storage", storage)
    assert "2 trials" in run("tune", "--trials", 2, *arguments)
    printed = run("tune", "--trials", 1, *arguments)
    assert "3 trials" in printed, "the search went on"
    study = optuna.load_study(study_name="trpl", storage=storage)
    assert number("return", printed) == pytest.approx(study.best_value, abs=0.1)
    assert number("mean_bound=", printed) == study.best_params["mean_bound"]


def test_compare(run, tmp_path):
    printed = run("compare", "--timesteps", 4096, "--seeds", 1, "--out", tmp_path)
    for method in ("TRPL", "FixPO", "PPO"):
        row = next(line for line in printed.splitlines() if line.startswith(method))
        assert -2000 < number("return", row) < 0
        assert number("KL of a state", row) > 0
        events = event_file(tmp_path / f"{method}_1")
        assert len(events.Scalars("trust_region/kl_max")) >= 1
    assert number("KL of a state", next(line for line in printed.splitlines() if "FixPO" in line)) < 1


def test_custom_projection(run):
    printed = run("custom_projection", "--timesteps", 2048)
    assert number("mean: mean distance", printed) < 2 * number(r"mean: .*bound", printed)
    assert 0 < number("cov: mean distance", printed) <= number(r"cov: .*bound", printed) * 1.01


def test_the_projection_of_custom_projection():
    projection = load_example("custom_projection").LogProjection(mean_bound=0.05, cov_bound=0.02)
    old = Gaussian(th.zeros(50, 3), std=th.rand(50, 3) + 0.1)
    new = Gaussian(th.randn(50, 3) * th.logspace(-3, 1, 50)[:, None], std=old.std * th.randn(50, 3).mul(0.2).exp())
    projected = projection(new, old)
    mean, cov = projection.distance(projected, old)
    assert (mean <= 0.05 * 1.0001).all()
    assert (cov <= 0.02 * 1.0001).all()
    inside = projection.distance(new, old)[1] <= 0.02
    assert 0 < inside.sum() < 50
    assert th.equal(projected.std[inside], new.std[inside])


def test_discrete(run):
    printed = run("discrete", "--timesteps", 2048)
    returns = re.findall(r"(Discrete|MultiDiscrete)\S*.*: return (-?[\d.]+) ±", printed)
    assert [space for space, _ in returns] == ["Discrete", "MultiDiscrete"]
    assert printed.count("states outside their trust region:        0.0%") == 2


def test_recurrent(run):
    printed = run("recurrent", "--timesteps", 2048)
    for name in ("FixPO with ActorCriticPolicy", "RecurrentFixPO with RecurrentActorCriticPolicy"):
        assert re.search(rf"^{name}: \d+% recalled\n  largest KL .*: 0\.[01]\d+ of 0\.2$", printed, re.MULTILINE)
    shown, named, reward = re.search(r"Shown (\d), it named (\d): reward (\d)", printed).groups()
    assert (shown == named) == (reward == "1")


def test_state_dependent_bounds(run):
    printed = run("state_dependent_bounds", "--timesteps", 2048)
    assert 0.01 < number("mean bound over the last batch:", printed) < 0.1
    assert number("states outside their own trust region:", printed) == 0


def test_the_bounds_of_state_dependent_bounds():
    observations = th.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    assert load_example("state_dependent_bounds").mean_bound(observations).tolist() == pytest.approx([0.01, 0.1])


def test_tasks(run):
    printed = run("tasks", "--timesteps", 2400)
    assert len(re.findall(r"largest KL of any state 0\.0\d+|largest KL of any state 0\.100", printed)) == 2
    rows = re.findall(r"(short|medium|long) +return +(-[\d.]+) +β ([\d.]+)", printed)
    assert [name for name, _, _ in rows] == ["short", "medium", "long"] * 2
    assert all(-3000 < float(episode_return) < 0 for _, episode_return, _ in rows), "in the units of one task"
    betas = [beta for _, _, beta in rows]
    assert len({*betas[:3]}) == 1 < len({*betas[3:]})


def test_full_covariance(run):
    printed = run("full_covariance", "--timesteps", 2048, "--projection", "w2")
    table = printed[printed.index("[[") :]
    correlations = np.array([[float(x) for x in row.strip(" []").split()] for row in table.strip().splitlines()])
    assert correlations.shape == (2, 2)
    assert np.allclose(correlations.diagonal(), 1)
    assert correlations[0, 1] == correlations[1, 0] != 0


def test_entropy_control(run):
    printed = run("entropy_control", "--timesteps", 6144)
    rows = re.findall(r"(\d+) steps +entropy +(-?[\d.]+) +bound +(-?[\d.]+)", printed)
    assert [int(steps) for steps, _, _ in rows] == [2048, 4096]
    entropies, bounds = np.array(rows, dtype=float)[:, 1:].T
    assert (np.diff(bounds) < 0).all()
    assert (entropies >= bounds - 1e-3).all()


def test_resume(run, tmp_path):
    printed = run("resume", "--env", "Pendulum-v1", "--timesteps", 2048, "--out", tmp_path)
    assert "saved after 2048 steps" in printed
    assert "went on to 4096 steps" in printed
    assert [path.name for path in tmp_path.glob("TRPL_*")] == ["TRPL_1"]


def test_projection_layer(run):
    printed = run("projection_layer", "--iterations", 41)
    objectives = [float(x) for x in re.findall(r"objective +(-?[\d.]+)", printed)]
    assert len(objectives) == 5
    assert objectives[0] < -100 < -1 < objectives[-1]
    parts = np.array(re.findall(r"KL ([\d.]+) \+ ([\d.]+)", printed), dtype=float)
    assert (parts <= [0.1, 0.005]).all()


def test_projection_layer_needs_no_stable_baselines():
    assert "stable_baselines3" not in (FOLDER / "projection_layer.py").read_text()


def test_figure_1(run, tmp_path):
    assert f"saved {tmp_path / 'figure_1.png'}" in run("figure_1", "--out", tmp_path / "figure_1.png")
    picture = imread(tmp_path / "figure_1.png")
    assert picture.shape[1] > 3 * picture.shape[0] > 1000
    assert picture[..., :3].std() > 0.05


def test_the_entropies_of_figure_1():
    old, new = gaussian(0.0), gaussian(1.0)
    assert float(old.entropy()) == pytest.approx(float(new.entropy()))
    for name, (projection, _) in PROJECTIONS.items():
        weight, path = interpolate(projection, new, old)
        assert (np.diff(weight) > 0).all()
        assert weight[-1] == pytest.approx(1)
        change = path.entropy()[10:-10] - old.entropy()
        assert ((change < 0) if name == "KL" else (change > 0)).all()


def test_reacher(run, tmp_path):
    printed = run("reacher", "--episodes", 2)
    assert number("largest final distance", printed) < 0.02
    assert number("mean return", printed) > -1


def test_fixpo_figures(run, tmp_path):
    """The shares that are printed are those of real fixup steps; a tight bound makes some."""
    small = ["--env", "Pendulum-v1", "--timesteps", 1024, "--n-envs", 2, "--n-steps", 64, "--batch-size", 32]
    out = tmp_path / "figures.png"
    printed = run("fixpo_figures", *small, "--coefficients", 1, 3, "--kl-bound", 1e-3, "--updates", 2, "--out", out)
    assert number("C_β = 1:", printed) > 0
    assert 0 < number(r"fixup steps,", printed) < 100
    assert imread(out).std() > 0.05


def test_deploy(run, tmp_path):
    printed = run("deploy", "--timesteps", 1000, "--out", tmp_path / "policy" / "pendulum.onnx")
    assert "observation: float32['batch', 3]" in printed
    assert -2000 < number("return", printed) < 0
    assert number("the largest difference from predict is", printed) < 1e-5
