"""Study files: what they say, and what is said of bad ones."""

import re
import subprocess
import sys

import pytest

pytest.importorskip("rl_zoo3")

from sb3_trl.study import Study, StudyError
from sb3_trl.study.description import file_name

GOOD = """\
tasks: [Pendulum-v1, CartPole-v1]
seeds: 2
n_timesteps: 2e3
eval_freq: 500
methods:
  TRPL:
    algo: trpl
    params: {n_epochs: 3, learning_rate: 5e-5}
    tasks: [Pendulum-v1]
  FixPO: {algo: fixpo}
"""


def test_the_runs_of_a_file(load):
    study = load(GOOD)
    assert study.name == "study"
    assert str(study.store.folder) == "studies/study"
    assert [str(run) for run in study.runs] == [
        "TRPL on Pendulum-v1, seed 0",
        "TRPL on Pendulum-v1, seed 1",
        "FixPO on Pendulum-v1, seed 0",
        "FixPO on Pendulum-v1, seed 1",
        "FixPO on CartPole-v1, seed 0",
        "FixPO on CartPole-v1, seed 1",
    ]
    assert {(run.n_timesteps, run.eval_freq, run.n_eval_episodes) for run in study.runs} == {(2000, 500, 5)}
    hyperparameters = study.runs[0].hyperparameters
    assert (hyperparameters["n_epochs"], hyperparameters["learning_rate"]) == (3, 5e-5)
    assert hyperparameters["gamma"] == 0.95, "of Pendulum's entry"
    assert study.runs[-1].hyperparameters["learning_rate"] == "lin_1e-3", "of CartPole's entry"


def test_steps_of_the_hyperparameter_file(load, tmp_path):
    (tmp_path / "short.yml").write_text("Pendulum-v1: {policy: MlpPolicy, n_timesteps: 1e4}")
    (tmp_path / "long.yml").write_text("default: {policy: MlpPolicy, n_timesteps: 2e4}")
    study = load(
        "tasks: [Pendulum-v1]\nseeds: [4, 2]\neval_freq: 1000\nmethods:\n"
        "  A: {algo: trpl, conf_file: short.yml}\n  B: {algo: fixpo, conf_file: long.yml}\n"
    )
    assert [(run.n_timesteps, run.seed) for run in study.runs] == [
        (10_000, 4),
        (10_000, 2),
        (20_000, 4),
        (20_000, 2),
    ]


def test_anchors_and_merged_methods(load):
    study = load(
        "tasks: [Pendulum-v1]\nseeds: 1\nmethods:\n"
        "  A: &a {algo: trpl, conf_file: trpl_paper.yml}\n  B: {<<: *a, params: {mean_bound: 0.1}}\n"
    )
    assert [run.hyperparameters["mean_bound"] for run in study.runs] == [0.03, 0.1]
    assert [run.hyperparameters["n_steps"] for run in study.runs] == [2048, 2048]


def test_a_hyperparameter_file_beside_the_study(load, tmp_path, monkeypatch):
    (tmp_path / "own.yml").write_text("default: {policy: MlpPolicy, n_timesteps: 1e5, n_steps: 99}")
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "study.yml").write_text("tasks: [Pendulum-v1]\nseeds: 1\nmethods: {A: {algo: a2c, conf_file: own.yml}}")
    assert Study.load(tmp_path / "study.yml").runs[0].hyperparameters["n_steps"] == 99


@pytest.mark.parametrize(
    ("label", "name"),
    [("TRPL-KL", "TRPL-KL"), ("a/b (c)", "a-b_c"), ("alpha=0.5", "alpha=0.5"), ("..", "_"), ("KL ≤ 1", "KL_1")],
)
def test_labels_as_names_of_folders(label, name):
    assert file_name(label) == name


def edit(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def test_steps_of_each_task(load):
    study = load(GOOD.replace("n_timesteps: 2e3", "n_timesteps: {CartPole-v1: 1e3}"))
    steps = {(run.task, run.n_timesteps, run.hyperparameters["n_timesteps"]) for run in study.runs}
    assert steps == {("CartPole-v1", 1000, 1000), ("Pendulum-v1", 100_000, 100_000), ("Pendulum-v1", 300_000, 300_000)}


def test_steps_of_each_method(load):
    text = GOOD.replace("{algo: fixpo}", "{algo: fixpo, n_timesteps: 1e3}")
    assert {(run.variant, run.n_timesteps) for run in load(text).runs} == {("TRPL", 2000), ("FixPO", 1000)}
    study = load(text.replace("1e3}", "{CartPole-v1: 600}}"))
    steps = {(run.variant, run.task, run.n_timesteps) for run in study.runs}
    assert steps == {("TRPL", "Pendulum-v1", 2000), ("FixPO", "Pendulum-v1", 2000), ("FixPO", "CartPole-v1", 600)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            edit("    tasks: [Pen", "    n_timesteps: {CartPole-v1: 9}\n    tasks: [Pen"),
            "9: unknown task 'CartPole-v1'",
        ),
        (
            edit("algo: trpl", "algo: trpl\n    n_timesteps: 400"),
            "4: eval_freq 500 is more than the 400 steps of TRPL on",
        ),
        (edit("tasks:", "taks:"), "1: unknown key 'taks', did you mean 'tasks'? allowed: name, tasks, seeds"),
        (edit("seeds: 2\n", ""), "1: a study needs 'seeds'; allowed: name, tasks, seeds"),
        (edit("seeds: 2", "seeds: 0"), "2: 'seeds' must be a whole number from 1 to 4294967295, not 0"),
        (edit("seeds: 2", "seeds: []"), "2: 'seeds' must be a list of seeds, with one at least, not []"),
        (edit("seeds: 2", "seeds: [0, 1, 0]"), "2: 0 is given twice in 'seeds'"),
        (edit("seeds: 2", "seeds: [0, -1]"), "2: an item of 'seeds' must be a whole number from 0"),
        (edit("seeds: 2", "seeds: two"), "2: 'seeds' must be a whole number"),
        (edit("2e3", "true"), "3: 'n_timesteps' must be a whole number of 1 or more, not True"),
        (edit("2e3", "{Cartpole-v1: 9}"), "3: unknown task 'Cartpole-v1', did you mean 'CartPole-v1'?"),
        (edit("2e3", "{CartPole-v1: 0}"), "3: 'CartPole-v1' must be a whole number of 1 or more, not 0"),
        (edit("2e3", "2.5"), "3: 'n_timesteps' must be a whole number of 1 or more, not 2.5"),
        (
            edit("500", "3000"),
            "4: eval_freq 3000 is more than the 2000 steps of TRPL on Pendulum-v1: allowed: 1 to 2000",
        ),
        (edit("500", "500\nn_timesteps: 9"), "5: 'n_timesteps' is given twice, first in line 3"),
        (edit("CartPole-v1]", "CartPol-v1]"), "1: unknown task 'CartPol-v1', did you mean 'CartPole-v1'"),
        (edit("[Pendulum-v1, CartPole-v1]", "Pendulum-v1"), "1: 'tasks' must be a list of environment ids"),
        (
            edit("tasks: [Pendulum-v1]", "tasks: [Ant-v5]"),
            "9: unknown task 'Ant-v5'; allowed: Pendulum-v1, CartPole-v1",
        ),
        (edit("algo: trpl", "algo: trlp"), "7: unknown algorithm 'trlp', did you mean 'trp"),
        (edit("algo: trpl", "algo: trlp"), "allowed: a2c, ars"),
        (edit("algo: trpl", "also: trpl"), "7: unknown key 'also', did you mean 'algo'? allowed: algo, conf_file"),
        (edit("{algo: fixpo}", "{}"), "10: method 'FixPO' needs 'algo'; allowed: algo, conf_file, params, tasks"),
        (edit("{algo: fixpo}", "fixpo"), "10: method 'FixPO' must be a mapping such as {algo: trpl"),
        (edit("  FixPO", "  TRPL"), "10: 'TRPL' is given twice, first in line 6"),
        (edit("  FixPO", "  trpl"), "10: 'trpl' and 'TRPL' would have the same folder"),
        (
            edit("n_epochs: 3", "n_epoch: 3"),
            "8: unknown hyperparameter of trpl 'n_epoch', did you mean 'n_epochs'? allow",
        ),
        (edit("n_epochs: 3", "seed: 3"), "8: 'seed' is set by the study itself, not in params"),
        (edit("n_epochs: 3", "n_timesteps: 3"), "8: 'n_timesteps' is set as n_timesteps of the study"),
        (edit("{algo: fixpo}", "{algo: fixpo, conf_file: fixp.yml}"), "10: unknown conf_file 'fixp.yml', did you mean"),
        (edit("{algo: fixpo}", "{algo: fixpo, conf_file: fixp.yml}"), "allowed: fixpo.yml, fixpo_paper.yml, papi.yml"),
        (edit("{algo: fixpo}", "{algo: fixpo, conf_file: my.module}"), "10: conf_file 'my.module' must be a YAML file"),
        (edit("{algo: fixpo}", "{algo: ppo, conf_file: ppo_v5.yml}"), "10: FixPO on Pendulum-v1: Hyperparameters not"),
        (edit("[Pendulum-v1, CartPole-v1]", "[Pendulum-v1"), "2: not valid YAML"),
        ("", "1: the file is empty"),
        ("- x", "1: a study must be a mapping such as"),
    ],
)
def test_errors_name_the_line_and_what_is_allowed(load, text, message):
    with pytest.raises(StudyError) as error:
        load(text)
    assert f"study.yml:{message}" in str(error.value) or (message.startswith("allowed") and message in str(error.value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (edit("n_epochs: 3", "n_epochs: 3, \n      mean_bound: -1"), "9: TRPL on Pendulum-v1: mean_bound"),
        (edit("n_epochs: 3", "projection: w3"), "8: TRPL on Pendulum-v1: projection='w3' is unknown: choose one of"),
        (edit("n_epochs: 3", "kl_bound: 0.1"), "8: TRPL on Pendulum-v1: kl_bound=0.1 bounds policies of another kind"),
    ],
)
def test_models_that_cannot_be_made_are_known_before_training(load, text, message):
    study = load(text)
    with pytest.raises(StudyError, match=re.escape(f"study.yml:{message}")):
        study.jobs()


def test_importing_studies_is_light():
    code = "import sys, sb3_trl.study; sys.exit(bool({'torch', 'joblib', 'ray', 'rl_zoo3', 'pandas'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_there_is_no_such_file():
    with pytest.raises(StudyError, match=r"nowhere.yml: No such file"):
        Study.load("nowhere.yml")
