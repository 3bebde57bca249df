"""The RL Zoo trains and evaluates many tasks, each as much as the others."""

import numpy as np
import pandas as pd
import pytest
import yaml
from support import event_file

pytest.importorskip("rl_zoo3")
pytest.importorskip("metaworld", reason='pip install "sb3-trl[metaworld]"')

from sb3_trl.study import Study, StudyError
from sb3_trl.study.task_rows import TASK_COLUMNS

ID = "sb3_trl/MetaWorldMT10-v0"
LINE = f"train --algo trpl --env {ID} --conf-file many.yml --seed 5 --device cpu --log-interval 1 -n 1004"


@pytest.fixture
def train(run, tmp_path):
    """Train with two tasks."""

    def call(more: str, n_envs: int = 2) -> tuple[int, str, str]:
        settings = {
            "policy": "MlpPolicy",
            "n_envs": n_envs,
            "n_timesteps": 1000,
            "normalize": True,
            "env_kwargs": {"tasks": ["reach", "drawer-close"], "n_goals": 2},
            "n_steps": 502,
            "batch_size": 251,
            "n_epochs": 1,
            "n_critic_epochs": 1,
        }
        (tmp_path / "many.yml").write_text(yaml.safe_dump({ID: settings}))
        return run(f"{LINE} {more}")

    return call


def test_every_task_is_trained_and_evaluated(train, tmp_path):
    code, _, error = train("--eval-freq 1000 --eval-episodes 2 --tensorboard-log runs")
    assert code == 0, error
    (folder,) = (tmp_path / "logs" / "trpl").glob("*MetaWorldMT10-v0_1")
    evaluations = np.load(folder / "evaluations.npz")
    assert evaluations["successes"].shape == evaluations["results"].shape == (1, 2)
    assert evaluations["results"][0, 0] != evaluations["results"][0, 1]
    (log,) = {path.parent for path in (tmp_path / "runs").rglob("events.out*")}
    for key in ("rollout/success_rate", "eval/success_rate"):
        assert event_file(log).Scalars(key)[0].value in (0, 0.5, 1)
    for key, kept in (("mean_reward", "results"), ("success_rate", "successes")):
        logged = [event_file(log).Scalars(f"eval/{key}/{task}")[0].value for task in ("reach", "drawer-close")]
        assert sorted(logged) == pytest.approx(sorted(map(float, evaluations[kept][0])), rel=1e-5)


def test_by_default_an_evaluation_plays_each_task_once(train, tmp_path):
    """The RL Zoo's five episodes are for one task."""
    code, _, error = train("--eval-freq 1000")
    assert code == 0, error
    (folder,) = (tmp_path / "logs" / "trpl").glob("*MetaWorldMT10-v0_1")
    assert np.load(folder / "evaluations.npz")["results"].shape == (1, 2)


def test_unequal_numbers_are_refused(train):
    code, _, error = train("--eval-freq 1000 --eval-episodes 5")
    assert code != 0
    assert "5 episodes cannot play 2 tasks equally often: --eval-episodes" in error
    code, _, error = train("--eval-freq 1000 --eval-ep=5")
    assert code != 0, "abbreviated, it is no default"
    assert "5 episodes cannot play 2 tasks" in error
    code, _, error = train("--eval-freq -1", n_envs=3)
    assert code != 0
    assert f"n_envs=3: {ID} has 2 tasks" in error


def test_a_study_keeps_what_each_task_does(tmp_path):
    """With one β for each, with one for all; and of an algorithm that cannot tell them apart what is evaluated."""
    (tmp_path / "many.yml").write_text(
        f"tasks: [{ID}]\nseeds: 1\nn_timesteps: 2008\neval_freq: 1004\nn_eval_episodes: 2\nmethods:\n"
        "  own: {algo: fixpo, params: {<<: &all {n_envs: 2, n_steps: 502, batch_size: 251, n_epochs: 1,\n"
        "    env_kwargs: {tasks: [reach, drawer-close], n_goals: 2}}, tasks: 2, beta_per_task: true}}\n"
        "  one: {algo: fixpo, params: {<<: *all, tasks: 2, beta_per_task: false}}\n"
        "  untold: {algo: lean_ppo, conf_file: ppo_fixpo.yml, params: *all}\n"
    )
    study = Study.load(tmp_path / "many.yml", tmp_path / "out")
    assert study.run(jobs=1, seed_batch=False) == []
    rows, by_task = study.results(), pd.read_csv(tmp_path / "out" / "by_task.csv")
    assert tuple(by_task.columns) == TASK_COLUMNS
    assert list(by_task.groupby(["variant", "step"]).size()) == [2] * 6
    assert {*by_task.subtask} == {"reach", "drawer-close"}
    means = by_task.groupby(["variant", "step"])[["eval_return", "eval_success"]].mean()
    pd.testing.assert_frame_equal(
        means, rows.set_index(["variant", "step"])[[*means]].sort_index(), rtol=1e-6, check_dtype=False
    )
    told = by_task[(by_task.variant != "untold") & (by_task.step > 1004)]  # after an update
    assert told.drop(columns="fixup_steps").notna().all(axis=None)
    assert (told.kl_mean <= told.kl_max).all()
    assert by_task[by_task.variant == "untold"][["kl_mean", "beta", "train_return"]].isna().all(axis=None)
    assert told[told.variant == "own"].fixup_steps.notna().all()
    assert told[told.variant == "one"].fixup_steps.isna().all(), "there is one β, and no steps for a single task"
    assert (told[told.variant == "one"].groupby("step").beta.nunique() == 1).all()


def test_a_study_says_so_before_anything_trains(tmp_path):
    (tmp_path / "many.yml").write_text(
        "tasks: [sb3_trl/MetaWorldMT10-v0]\nseeds: 1\nn_timesteps: 100\neval_freq: 100\nn_eval_episodes: 5\nmethods:\n"
        "  A:\n    algo: trpl\n"
        "    params: {n_envs: 2, n_steps: 32, batch_size: 32, env_kwargs: {tasks: [reach, push]}}\n"
    )
    with pytest.raises(StudyError, match=r"many.yml:7: A on sb3_trl/MetaWorldMT10-v0: An evaluation of 5 episodes"):
        Study.load(tmp_path / "many.yml", tmp_path / "out").run(jobs=1)
