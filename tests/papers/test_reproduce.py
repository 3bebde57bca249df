"""``sb3-trl reproduce``: its figures show the runs that there are, runs are shared.

All of it at the scale ``smoke`` is checked by ``make reproduce``.
"""

import numpy as np
import pytest
from matplotlib.image import imread

pytest.importorskip("rl_zoo3")

from sb3_trl.papers import reproduce, scales
from sb3_trl.papers.reproduce import ITEMS
from sb3_trl.papers.scales import SCALES

# --- studies ---


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


# --- the command ---


@pytest.mark.parametrize(("name", "guess"), [("trpl-tabel1", "trpl-table1"), ("fixpo-fig9", "fixpo-fig")])
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
