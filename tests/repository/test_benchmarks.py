"""Of benchmarks: ``tune.py`` trains all seeds of a trial in one batch; contests are of equals."""

import runpy

import optuna
import pandas as pd
import pytest
from support import ROOT

from sb3_trl.study.jobs import Outcome
from sb3_trl.zoo.registry import register

BENCHMARKS = ROOT / "benchmarks"
RETURNS = {100: [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 101: [10.0] * 6}


def test_recurrent_contestants_take_steps_of_the_same_size(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    recurrent = runpy.run_path(str(BENCHMARKS / "recurrent.py"))
    for contest in recurrent["CONTESTS"].values():
        models = [make() for make in contest.values()]
        sizes = {(m.n_steps * m.n_envs, m.batch_size, m.n_epochs, m.policy.lstm_actor.hidden_size) for m in models}
        assert len(sizes) == 1
        (shape,) = {m.observation_space.shape for m in models}
        assert shape in ((2,), (3, 36, 64)), "velocities are hidden"


@pytest.fixture
def tune():
    register()
    return runpy.run_path(str(BENCHMARKS / "tune.py"))


def search_of(tune, name, task, train=None):
    search = tune["Search"](BENCHMARKS / "tuning" / name, task, None, len(RETURNS))
    if train is not None:
        tune["Search"].objective.__globals__["train"] = train
    return search


def test_the_seeds_of_a_trial_train_in_one_batch_and_their_last_five_evaluations_count(tune):
    jobs = []

    def train(job):
        jobs.append(job)
        rows = {run.seed: pd.DataFrame({"eval_return": RETURNS[run.seed]}).to_csv().encode() for run in job.runs}
        return [Outcome(run, {"rows.csv": rows[run.seed]}) for run in job.runs]

    search = search_of(tune, "trpl_pendulum.yml", "Pendulum-v1", train)
    trial = optuna.create_study().ask(
        fixed_distributions={"network": optuna.distributions.CategoricalDistribution(["small"])}
    )
    assert search.objective(trial) == 6.5
    assert trial.user_attrs["seeds"] == [3.0, 10.0]
    (job,) = jobs
    assert job.is_batch
    assert [run.seed for run in job.runs] == [100, 101]
    assert {(run.n_timesteps, run.eval_freq, run.n_eval_episodes) for run in job.runs} == {(100_000, 10_000, 20)}


@pytest.mark.parametrize(("name", "task"), [("trpl.yml", "Hopper-v5"), ("trpl_pendulum.yml", "Pendulum-v1")])
def test_what_is_tried_first_lies_in_the_space_and_reaches_the_run(tune, name, task):
    search = search_of(tune, name, task)
    for start in search.start:
        assert start.keys() == search.space.keys()
        trial = optuna.trial.FixedTrial(start)
        settings = search.hyperparameters(search.draw(trial))
        assert settings["n_envs"] * settings["n_steps"] == start["rollout"]
        assert settings["learning_rate"] == start["learning_rate"]
        assert f"init_std={start['init_std']}" in settings["policy_kwargs"]
        assert settings["n_timesteps"] == search.n_timesteps
