"""Runs that start from another run's model."""

import io
import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th

pytest.importorskip("rl_zoo3")

from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import VecNormalize
from support import vec_env

from sb3_trl import FixPO, LeanPPO
from sb3_trl.study import Selection, Study, StudyError, transfer
from sb3_trl.study.checkpoint import Checkpoints
from sb3_trl.study.jobs import waves
from sb3_trl.study.run import _Training, train
from sb3_trl.study.study import describe, failures
from sb3_trl.study.transfer import statistics

from .cases import table

CONF = (
    "default: {policy: MlpPolicy, normalize: true, n_timesteps: 64, n_envs: 1, n_steps: 32, batch_size: 32, "
    "n_epochs: 2, learning_rate: lin_1e-2}\n"
)
#: In the file the runs that come last stand first. Swinging has Pendulum's observations and actions.
TEXT = """\
tasks: [Pendulum-v1, Swinging-v0]
seeds: 2
n_timesteps: 64
eval_freq: 64
n_eval_episodes: 1
methods:
  back:
    algo: lean_ppo
    conf_file: own.yml
    tasks: [Pendulum-v1]
    start_from: {method: tuned, task: Swinging-v0}
  tuned:
    algo: fixpo
    conf_file: own.yml
    params: &beta {beta_learning_rate: 0.5}
    tasks: [Swinging-v0]
    start_from: {method: new, task: Pendulum-v1}
  new: {algo: fixpo, conf_file: own.yml, params: *beta, tasks: [Pendulum-v1]}
"""
ORDER = ["new", "tuned", "back"]


@pytest.fixture(scope="module", autouse=True)
def swinging():
    entry = "gymnasium.envs.classic_control:PendulumEnv"
    gym.register("Swinging-v0", entry, max_episode_steps=50, kwargs={"g": 5.0})
    yield
    gym.registry.pop("Swinging-v0")


def load_in(folder: Path, text: str = TEXT, out: str = "out", **selection: list) -> Study:
    (folder / "own.yml").write_text(CONF)
    (folder / "study.yml").write_text(text)
    return Study.load(folder / "study.yml", folder / out, selection=Selection(**selection))


@pytest.fixture
def load(tmp_path):
    return lambda *args, **kwargs: load_in(tmp_path, *args, **kwargs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The study, trained in one go."""
    study = load_in(tmp_path_factory.mktemp("whole"))
    assert study.run(jobs=1, seed_batch=False) == []
    return study


def edit(old: str, new: str, text: str = TEXT) -> str:
    assert old in text
    return text.replace(old, new, 1)


def left_by(study: Study, variant: str, seed: int) -> tuple[FixPO, VecNormalize]:
    """Return the model that a run has left, and its normalisation."""
    (run,) = (run for run in study.runs if (run.variant, run.seed) == (variant, seed))
    algorithm = LeanPPO if variant == "back" else FixPO
    normalization = VecNormalize.load(
        study.store.path(run) / "vecnormalize.pkl", vec_env(cls=lambda: gym.make(run.task))
    )
    return algorithm.load(study.store.path(run) / "model.zip", device="cpu"), normalization


# --- what a run starts with ---


@pytest.fixture
def begun(monkeypatch):
    """How models are when their training begins, by method and seed."""
    found = {}
    make = _Training.__init__

    def look(training, *args):
        make(training, *args)
        model = training.model
        found[training.run.variant, training.run.seed] = {
            "policy": {name: value.clone() for name, value in model.policy.state_dict().items()},
            "statistics": [(s.mean.copy(), np.copy(s.var), s.count) for s in statistics(model.get_vec_normalize_env())],
            "optimizer": len((getattr(model.policy, "optimizer", None) or model.actor.optimizer).state_dict()["state"]),
            "beta": model.dual.value.item() if isinstance(model, FixPO) else None,
            "steps": model.num_timesteps,
        }

    monkeypatch.setattr(_Training, "__init__", look)
    return found


@pytest.mark.parametrize("seed_batch", [False, True])
def test_a_run_starts_with_what_the_other_has_learned_and_nothing_else(load, begun, seed_batch):
    study = load()
    assert study.run(jobs=1, seed_batch=seed_batch) == []
    for before, after in pairwise(ORDER):
        for seed in range(2):
            model, normalization = left_by(study, before, seed)
            start = begun[after, seed]
            parameters = model.policy.state_dict()
            assert start["policy"].keys() == parameters.keys()
            assert all(th.equal(start["policy"][name], value) for name, value in parameters.items())
            for (mean, var, count), theirs in zip(start["statistics"], statistics(normalization), strict=True):
                assert np.array_equal(mean, theirs.mean)
                assert np.array_equal(var, theirs.var)
                assert count == theirs.count > 64
            assert (start["optimizer"], start["steps"]) == (0, 0)
            for later, earlier in zip(*(map(statistics, (left_by(study, after, seed)[1], normalization))), strict=True):
                assert later.count == pytest.approx(earlier.count + 64, abs=2), "they go on learning"
    left = [left_by(study, "new", seed)[0] for seed in range(2)]
    assert not th.equal(*(model.policy.log_std for model in left)), "each seed from its own"
    assert all(model.dual.value.item() != begun["new", 0]["beta"] for model in left)
    assert begun["tuned", 0]["beta"] == begun["new", 0]["beta"]
    assert study.results().groupby(["variant", "seed"]).step.apply(list).tolist() == [[64]] * 6


SAC_TEXT = """\
tasks: [Pendulum-v1]
seeds: 1
n_timesteps: 32
eval_freq: 32
n_eval_episodes: 1
methods:
  new: &sac {algo: sac, conf_file: sac.yml}
  tuned: {<<: *sac, start_from: {method: new}}
"""


def test_an_algorithm_of_sb3_with_several_networks(load, begun, tmp_path):
    (tmp_path / "sac.yml").write_text(
        "default: {policy: MlpPolicy, normalize: true, n_timesteps: 32, batch_size: 8, learning_starts: 16}\n"
    )
    study = load(SAC_TEXT)
    assert study.run(jobs=1) == []
    left = SAC.load(study.store.path(study.runs[0]) / "model.zip", device="cpu").policy.state_dict()
    start = begun["tuned", 0]["policy"]
    assert start.keys() == left.keys()
    assert any(name.startswith("critic_target") for name in left)
    assert all(th.equal(start[name], value) for name, value in left.items())
    assert not th.equal(left["actor.mu.bias"], begun["new", 0]["policy"]["actor.mu.bias"])


def test_by_hand(whole, begun, load):
    """The page's five lines of Python do what a study does."""
    trained, _ = left_by(whole, "new", 1)
    (run,) = (run for run in whole.runs if (run.variant, run.seed) == ("new", 1))
    env = VecNormalize.load(whole.store.path(run) / "vecnormalize.pkl", vec_env(cls=lambda: gym.make("Swinging-v0")))
    model = FixPO("MlpPolicy", env, n_steps=32, batch_size=32)
    model.policy.load_state_dict(trained.policy.state_dict())
    assert load().run(jobs=1, seed_batch=False) == []
    start = begun["tuned", 1]
    assert all(th.equal(start["policy"][name], value) for name, value in model.policy.state_dict().items())
    for (mean, var, count), ours in zip(start["statistics"], statistics(env), strict=True):
        assert np.array_equal(mean, ours.mean)
        assert np.array_equal(var, ours.var)
        assert count == ours.count
    assert (model.num_timesteps, model.dual.value.item()) == (start["steps"], start["beta"])


# --- in which order ---


def test_a_run_waits_for_the_one_that_it_starts_from(load, whole):
    study = load()
    order = waves(study.jobs(seed_batch=False))
    assert [[(run.variant, run.seed) for job in wave for run in job.runs] for wave in order] == [
        [(variant, 0), (variant, 1)] for variant in ORDER
    ]
    assert [len(wave) for wave in waves(study.jobs(seed_batch=True))] == [1, 1, 1]
    text = describe(study, study.jobs(seed_batch=False))
    assert "  back on Pendulum-v1, from tuned on Swinging-v0, 64 steps, seed 0" in text
    assert "  new on Pendulum-v1, 64 steps, seed 0" in text
    assert waves([]) == []


def test_a_job_takes_along_what_it_starts_from(load, whole):
    """To a process that need not see the study's folder."""
    (job,) = [job for job in load().jobs(seed_batch=False) if str(job.runs[0]) == "tuned on Swinging-v0, seed 1"]
    job = pickle.loads(pickle.dumps(replace(whole._with_starts(job), folder="")))
    (outcome,) = train(job)
    assert outcome.error is None
    ours = FixPO.load(io.BytesIO(outcome.files["model.zip"]), device="cpu").policy.state_dict()
    theirs = left_by(whole, "tuned", 1)[0].policy.state_dict()
    assert all(th.equal(ours[name], value) for name, value in theirs.items())


# --- interruptions ---


def test_what_an_earlier_call_has_finished_is_started_from(load, whole):
    study = load(variant=["new"])
    assert study.run(jobs=1, seed_batch=False) == []
    study = load(variant=["tuned"], seed=[1])
    assert [[run.variant for job in wave for run in job.runs] for wave in waves(study.jobs())] == [["tuned"]]
    assert study.run(jobs=1, seed_batch=False) == []
    assert load().run(jobs=1, seed_batch=False) == []
    assert table(study.store.folder) == table(whole.store.folder)


def test_a_run_that_was_interrupted_goes_on_from_its_checkpoint_and_not_from_the_start(load, monkeypatch):
    study = load(edit("seeds: 2", "seeds: 1"))
    save, starts = Checkpoints._on_rollout_start, []
    begin_from = transfer.begin_from

    def save_or_stop(callback):
        save(callback)
        if callback.model.num_timesteps == 32 and starts:
            raise KeyboardInterrupt

    def begin(model, start):
        starts.append(type(model).__name__)
        begin_from(model, start)

    monkeypatch.setattr(transfer, "begin_from", begin)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_on_rollout_start", save_or_stop)
        with pytest.raises(KeyboardInterrupt):
            study.run(jobs=1, seed_batch=False, checkpoint_minutes=0)
    assert starts == ["FixPO"]
    tuned = study.runs[1]
    assert study.store.steps_begun(tuned) == 32
    assert study.run(jobs=1, seed_batch=False) == []
    assert starts == ["FixPO", "LeanPPO"]
    assert study.results().groupby("variant").resumed.max().to_dict() == {"new": 0, "tuned": 1, "back": 0}


# --- failures and changes ---


@pytest.mark.parametrize("seed_batch", [False, True])
def test_what_starts_from_a_run_that_failed_is_not_run(load, failing, capsys, seed_batch):
    text = TEXT.replace("Pendulum-v1", failing).replace("Swinging-v0", failing)
    text = text.replace(f"tasks: [{failing}, {failing}]", f"tasks: [{failing}]").replace(": 64", ": 128")
    study = load(text)
    failed = study.run(jobs=1, seed_batch=seed_batch)
    assert [(run.variant, run.seed) for run in failed] == [(variant, 1) for variant in ORDER]
    assert [(run.variant, run.seed) for run in study.finished] == [(variant, 0) for variant in reversed(ORDER)]
    sentence = f"not run: it starts from new on {failing}, seed 1, which has not finished"
    assert study.store.error_path(failed[1]).read_text() == sentence
    assert f"tuned on {failing}, seed 1: {sentence}" in capsys.readouterr().out
    assert failures(study, failed).splitlines() == [
        "1 runs failed:",
        f"  new on {failing}, seed 1: {study.store.error_path(failed[0])}",
        "2 runs could not begin:",
        f"  tuned on {failing}, seed 1: it starts from new on {failing}, seed 1",
        f"  back on {failing}, seed 1: it starts from tuned on {failing}, seed 1",
    ]
    assert len(study.jobs()) == 3, "all are tried again"


def test_a_run_has_changed_if_the_one_that_it_starts_from_has(load, whole):
    assert load().run(jobs=1, seed_batch=False) == []
    text = edit("beta_learning_rate: 0.5", "beta_learning_rate: 0.25")
    changed = load(text)
    back, tuned, new = (changed.store.differences(run) for run in changed.runs[::2])
    pair = (0.5, 0.25)
    assert new == {"beta_learning_rate": pair}
    assert tuned == {"beta_learning_rate": pair, "start_from.beta_learning_rate": pair}
    assert back == {"start_from.beta_learning_rate": pair, "start_from.start_from.beta_learning_rate": pair}
    with pytest.raises(StudyError, match=r"back on Pendulum-v1, seed 0 was trained with other settings: start_from.be"):
        changed.jobs()
    selected = load(text, variant=["tuned"])
    message = (
        "tuned on Swinging-v0, seed 0 starts from new on Pendulum-v1, seed 0, which was trained with other settings "
        "and is not among the runs to train: choose it too, with --variants 'new', --tasks Pendulum-v1 and --seeds 0"
    )
    with pytest.raises(StudyError, match=message):
        selected.jobs(rerun_changed=True)
    anew = load(edit("    start_from: {method: new, task: Pendulum-v1}\n", ""))
    assert anew.store.differences(anew.runs[2]) == {"start_from": ("fixpo on Pendulum-v1", None)}
    assert len(changed.jobs(rerun_changed=True, seed_batch=False)) == 6


# --- what is wrong with a file ---


def test_what_is_started_from_must_be_trained_too(load):
    message = (
        r"study.yml:17: tuned on Swinging-v0, seed 1 starts from new on Pendulum-v1, seed 1, which has not finished"
    )
    with pytest.raises(StudyError, match=message):
        load(variant=["tuned"], seed=[1]).jobs()


ON_EACH = edit("tasks: [Swinging-v0]\n    start_from: {method: new, task: Pendulum-v1}", "start_from: {method: new}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            edit("method: tuned", "method: tune"),
            "11: unknown method 'tune', did you mean 'tuned'? allowed: back, tuned",
        ),
        (
            edit("task: Swinging-v0", "task: Swing-v0"),
            "11: unknown task of tuned 'Swing-v0', did you mean 'Swinging-v0'",
        ),
        (
            edit("task: Swinging-v0", "task: Pendulum-v1"),
            "11: unknown task of tuned 'Pendulum-v1'; allowed: Swinging-v0",
        ),
        (edit("task: Swinging-v0", "seed: 0"), "11: unknown key 'seed'; allowed: method, task"),
        (edit("{method: tuned, task: Swinging-v0}", "{}"), "11: 'start_from' needs 'method'; allowed: method, task"),
        (edit("{method: tuned, task: Swinging-v0}", "tuned"), "11: 'start_from' must be a mapping such as {method: "),
        (
            ON_EACH,
            "16: tuned on Swinging-v0 would start from new on Swinging-v0, of which there is no run: say from which "
            "task, {method: new, task: Pendulum-v1}; allowed: Pendulum-v1",
        ),
        (
            edit("method: new, task: Pendulum-v1", "method: tuned, task: Swinging-v0"),
            "11: tuned on Swinging-v0, which starts from tuned on Swinging-v0: one of them must begin",
        ),
        (
            edit("method: new, task: Pendulum-v1", "method: back, task: Pendulum-v1"),
            "11: back on Pendulum-v1, which starts from tuned on Swinging-v0, which starts from back on ",
        ),
    ],
)
def test_errors_of_a_file(load, text, message):
    with pytest.raises(StudyError) as error:
        load(text)
    assert f"study.yml:{message}" in str(error.value)


def test_each_task_from_the_same_one(load):
    study = load(edit("params: *beta, tasks: [Pendulum-v1]", "params: *beta", ON_EACH))
    starts = {(run.variant, run.task): run.start_from.task for run in study.runs if run.start_from is not None}
    assert starts == {
        ("back", "Pendulum-v1"): "Swinging-v0",
        ("tuned", "Pendulum-v1"): "Pendulum-v1",
        ("tuned", "Swinging-v0"): "Swinging-v0",
    }
    assert all(run.start_from is None or run.start_from.seed == run.seed for run in study.runs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Swinging-v0": "MountainCarContinuous-v0"}, "observation is 3 in the one and 2 in the other"),
        (
            {"&beta {": "&beta {policy_kwargs: {net_arch: [8]}, "},
            "parameter mlp_extractor.policy_net.0.weight is 64 × 3 in the one and 8 × 3 in the other",
        ),
        ({"*beta": "{normalize: false}"}, "normalisation is on for observations, on for rewards in the one and off in"),
        (
            {"*beta": "{normalize: {norm_reward: false}}"},
            "normalisation is on for observations, on for rewards in the one and on for observations, off for",
        ),
        ({"new: {algo: fixpo": "new: {algo: trpl", "*beta": "{}"}, " in the one and missing in the other"),
    ],
)
def test_models_that_do_not_fit_are_known_before_training(load, change, message):
    text = TEXT
    for old, new in change.items():
        text = text.replace(old, new)
    with pytest.raises(StudyError) as error:
        load(text).jobs()
    assert message in str(error.value)
    assert "study.yml:" in str(error.value)
    assert "Both need the same observations, actions, networks and normalisation." in str(error.value)
    assert " cannot start from " in str(error.value)
