"""``sb3-trl reproduce``: its studies are valid and fair, its figures draw what is there, runs are shared.

All of it at the scale ``smoke`` is checked by ``make reproduce``.
"""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.image import imread
from stable_baselines3.common.callbacks import BaseCallback

pytest.importorskip("rl_zoo3")

from sb3_trl.papers import scales
from sb3_trl.papers.fixup import RecordedFixPO, fixup_steps, shown_updates
from sb3_trl.papers.reproduce import ITEMS, reproduce
from sb3_trl.papers.scales import SCALES, paper_studies, scaled_study
from sb3_trl.policies.actor_critic import SingleOptimizerPolicy
from sb3_trl.report.estimates import aggregate
from sb3_trl.report.figures import draw_curves, limits
from sb3_trl.report.random_policy import random_returns, shipped_returns
from sb3_trl.report.statistics import Estimate, interquartile_mean
from sb3_trl.report.tables import estimate_text, interval_text, markdown_table, number_text
from sb3_trl.study import Study

STUDIES = sorted(paper_studies())


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Every study that comes with the package at every scale: (name, scale) → its plan."""
    folder, result = tmp_path_factory.mktemp("studies"), {}
    for name in STUDIES:
        for scale in SCALES:
            content = scaled_study(name, scale)
            if content is not None:
                path = folder / f"{name}-{scale}.yml"
                path.write_text(yaml.safe_dump(content))
                result[name, scale] = Study.load(path).plan
    return result


# --- studies ---


@pytest.mark.parametrize("name", STUDIES)
def test_the_file_as_it_is_is_a_study(name):
    assert Study.load(paper_studies()[name]).runs


def test_every_study_runs_at_the_papers_scale(plans):
    assert {name for name, scale in plans if scale == "paper"} == set(STUDIES)


def test_figures_show_runs_that_there_are(plans):
    for item in ITEMS.values():
        for part in item.parts:
            groups = plans[part.study, "paper"].groups
            for method in part.methods:
                tasks = {group.runs[0].task for group in groups if group.method.label == method}
                assert tasks, (part.study, method)
                assert tasks >= set(part.tasks or ())


def test_every_run_is_shown(plans):
    shown = [part for item in ITEMS.values() for part in item.parts]
    for (name, _), plan in plans.items():
        for group in plan.groups:
            parts = [part for part in shown if part.study == name]
            assert any(part.has(group.method.label, group.runs[0].task) for part in parts), group


def test_methods_of_a_task_observe_the_same(plans):
    """Ant: 27 numbers for all, or 105."""
    for plan in plans.values():
        for task in plan.description.tasks:
            groups = [group for group in plan.groups if group.runs[0].task == task]
            kwargs = [str(group.runs[0].hyperparameters.get("env_kwargs")) for group in groups]
            assert len(set(kwargs)) == 1, (plan.description.name, task)


def test_ant_is_the_same_in_all_files_of_the_package():
    from sb3_trl.zoo.registry import hyperparameter_files

    for path in hyperparameter_files().values():
        entries = yaml.safe_load(path.read_text())
        entry = entries.get("Ant-v5", {"env_kwargs": {"include_cfrc_ext_in_observation": False}})
        assert entry["env_kwargs"] == {"include_cfrc_ext_in_observation": False}, path.name


def test_random_returns_of_every_task_are_known(plans):
    tasks = {task for plan in plans.values() for task in plan.description.tasks}
    assert tasks <= shipped_returns().keys()


def test_a_scale_changes_what_it_says_and_nothing_else():
    paper, small = scaled_study("trpl_mujoco", "paper"), scaled_study("trpl_mujoco", "small")
    assert paper["methods"] == small["methods"]
    assert (paper["seeds"], small["seeds"]) == (40, 3)
    smoke = scaled_study("fixpo_mujoco", "smoke")
    assert smoke["tasks"] == ["Walker2d-v5"]
    assert all(method["tasks"] == ["Walker2d-v5"] for method in smoke["methods"].values())
    assert smoke["methods"]["C_beta=1"]["params"]["kl_target_coef"] == 1
    assert scaled_study("trpl_humanoid", "small") is None


# --- the command ---


@pytest.mark.parametrize(("name", "guess"), [("trpl-tabel1", "trpl-table1"), ("fixpo-fig6", "fixpo-fig")])
def test_unknown_names(run, name, guess):
    code, _, error = run(f"reproduce {name}")
    assert code == 2
    assert f"did you mean '{guess}" in error
    assert all(known in error for known in ITEMS)


def test_which_one(run):
    code, _, error = run("reproduce")
    assert code == 2
    assert "trpl-fig2-centre" in error


def test_list(run):
    code, out, _ = run("reproduce --list")
    assert code == 0
    for name, item in ITEMS.items():
        (line,) = (line for line in out.splitlines() if line.startswith(f"{name} "))
        assert item.summary in line
    assert all(f"  {scale} " in out for scale in SCALES)


def test_nothing_to_read(run, tmp_path):
    code, _, error = run(f"reproduce fixpo-fig4 --read-only --out {tmp_path}")
    assert code == 2
    assert "repeat without --read-only" in error


@pytest.fixture
def tiny(monkeypatch):
    """The scale ``smoke`` with one task of two methods, and two updates."""
    smoke = scales.scale_settings("smoke")
    changes = {"n_timesteps": 256, "eval_freq": 64, "seeds": 1, "tasks": ["Walker2d-v5"]}
    params = {algo: {"n_envs": 2, "n_steps": 32, "batch_size": 32, "n_epochs": 1} for algo in ("fixpo", "lean_ppo")}
    settings = smoke | {"fixpo_mujoco": smoke["fixpo_mujoco"] | changes | {"params": params}, "last": 1}
    for module in (scales, reproduce):
        monkeypatch.setattr(module, "scale_settings", lambda scale: settings)


def test_runs_are_shared_kept_and_read(tiny, run, tmp_path):
    assert run(f"reproduce fixpo-fig4 --jobs 1 --out {tmp_path}")[0] == 0
    folder = tmp_path / "studies" / "fixpo_mujoco"
    models = {path: path.stat().st_mtime_ns for path in folder.rglob("model.zip")}
    assert len(models) == 2, "FixPO and PPO-clip, and no other"
    page = (tmp_path / "fixpo-fig4.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith(("| FixPO", "| PPO-clip"))]
    assert np.isfinite([[float(cell) for cell in row[1:]] for row in rows]).all()
    assert "256 steps" in page
    picture = imread(tmp_path / "fixpo-fig4.png")
    (tmp_path / "fixpo-fig4.png").unlink()

    code, out, _ = run(f"reproduce fixpo-fig4 --read-only --out {tmp_path}")
    assert code == 0
    assert str(tmp_path / "fixpo-fig4.png") in out
    assert np.array_equal(picture, imread(tmp_path / "fixpo-fig4.png"))
    assert page == (tmp_path / "fixpo-fig4.md").read_text()

    assert run(f"reproduce fixpo-fig3 --read-only --out {tmp_path}")[0] == 0, "of the runs that are there"
    rows = (tmp_path / "fixpo-fig3.md").read_text()
    assert "| FixPO |" in rows
    assert "TRPO |" not in rows
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("model.zip")} == models


def test_a_figure_without_training(run, tmp_path):
    assert run(f"reproduce trpl-fig1 --out {tmp_path}")[0] == 0
    assert imread(tmp_path / "trpl-fig1.png")[..., :3].std() > 0.05


# --- parts ---


def test_the_recording_has_every_step():
    """The fixup steps of every update are those of the log; each update has its epochs; KL and β are numbers."""
    logged = []

    class Keep(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _keep(self) -> None:
            if "fixpo/fixup_steps" in self.logger.name_to_value:
                logged.append(self.logger.name_to_value["fixpo/fixup_steps"])

        _on_rollout_start = _on_training_end = _keep

    model = RecordedFixPO(
        "MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=32, n_epochs=3, kl_bound=1e-4, kl_target_coef=1, seed=0
    )
    model.learn(256, Keep())
    history = pd.DataFrame(model.history, columns=["timesteps", "update", "kind", "kl", "beta"])
    assert fixup_steps(history).tolist() == logged
    assert sum(logged) > 0
    kinds = history.groupby(["update", "kind"]).size().unstack(fill_value=0)
    assert kinds.primary.tolist() == [6] * 4
    assert kinds.end.tolist() == [3] * 4
    steps = history[history.kind != "end"]
    assert np.isfinite(steps[["kl", "beta"]]).all(axis=None)
    assert shown_updates(history, 2)["update"].unique().tolist() == [1, 2]


def test_random_returns_are_those_of_the_table():
    """Reacher is quick, and its returns vary little: the table's 100 episodes begin with these."""
    returns = random_returns("Reacher-v5", 20)
    assert np.array_equal(returns, random_returns("Reacher-v5", 20))
    assert returns.mean() == pytest.approx(shipped_returns()["Reacher-v5"], abs=4)


def test_ppo_trains_a_critic_with_a_policy_of_one_optimizer():
    from stable_baselines3 import PPO

    model = PPO(SingleOptimizerPolicy, "Pendulum-v1", n_steps=64, policy_kwargs={"contextual_std": True}, seed=0)
    before = {name: parameter.clone() for name, parameter in model.policy.named_parameters()}
    model.learn(64)
    changed = {name for name, parameter in model.policy.named_parameters() if not parameter.equal(before[name])}
    assert changed == before.keys()


def test_texts_of_numbers():
    nan = float("nan")
    assert estimate_text(Estimate(1234.5, 1200.0, 1269.0)) == "1234 ± 34"
    assert estimate_text(Estimate(0.01234, 0.01, 0.01468), bold=True) == "**0.0123** ± 0.0023"
    assert estimate_text(Estimate(-2.5, nan, nan)) == "-2.50"
    assert estimate_text(Estimate(nan, nan, nan)) == number_text(nan) == "–"
    assert interval_text(Estimate(0.51, 0.4, 0.9)) == "0.510 (0.400 to 0.900)"
    assert interval_text(Estimate(0.51, nan, nan)) == "0.510"
    assert number_text(0.0) == "0"
    assert markdown_table(["a", "b"], [["1", "2"]]).splitlines()[1] == "| --- | ---: |"


def test_aggregate_leaves_out_what_cannot_be_compared(monkeypatch):
    """B lacks a run on T; on S nobody is better than random play."""
    monkeypatch.setattr("sb3_trl.report.estimates.interquartile_mean", partial(interquartile_mean, repetitions=100))
    rows = [("A", "R", 4.0), ("A", "S", 1.0), ("A", "T", 2.0), ("B", "R", 6.0), ("B", "S", 1.0), ("B", "T", 3.0)]
    final = pd.DataFrame(
        [(*row, seed) for row in rows for seed in (0, 1)], columns=["variant", "task", "value", "seed"]
    )
    random = {"R": 2.0, "S": 1.0, "T": 1.0}
    estimates, text = aggregate(final, "A", random)
    assert {name: estimate.value for name, estimate in estimates.items()} == {"A": 1.0, "B": 2.0}
    assert "on S: left out" in text
    estimates, text = aggregate(final.drop(index=11), "A", random)
    assert list(estimates) == ["A"]
    assert "| B |" not in text
    assert aggregate(final[final.variant == "B"], "A", random)[0] == {}


def test_limits_hold_the_values():
    low, high = limits([1.0, float("nan"), 3.0])
    assert low < 1 < 3 < high
    low, high = limits([2.0])
    assert low < 2 < high
    assert limits([float("nan")]) == (-1, 1)


@pytest.mark.parametrize("seeds", [2, 4])
def test_curves(seeds):
    """A panel for each task, a line for the mean, and a band from three seeds on."""
    table = pd.DataFrame(
        [
            {"variant": variant, "task": task, "seed": seed, "step": step, "eval_return": seed + step}
            for variant in ("A", "B")
            for task in ("S", "T")
            for seed in range(seeds)
            for step in (10, 20, 30)
        ]
    )
    figure = draw_curves(table, "eval_return", "return", {"A": {"label": "first"}, "B": {}}, lines={"bound": 100})
    assert [axis.get_title() for axis in figure.axes] == ["S", "T"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["first", "B", "bound"]
    for axis in figure.axes:
        mean = axis.get_lines()[0]
        assert np.allclose(mean.get_ydata(), np.array([10, 20, 30]) + (seeds - 1) / 2)
        assert len(axis.collections) == (2 if seeds > 2 else 0)
        assert axis.get_ylim()[1] > 100
