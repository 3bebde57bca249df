"""The search for hyperparameters: it runs, resumes from its storage, is shared by workers, and its trials train."""

import os
import subprocess
import sys
from contextlib import nullcontext

import optuna
import pandas as pd
import pytest
import yaml
from optuna.trial import TrialState

pytest.importorskip("rl_zoo3")

from sb3_trl.zoo.registry import SETTINGS_OF, algorithms
from sb3_trl.zoo.samplers import CONVERTERS, SAMPLERS

SIZES = {"n_steps": 128, "batch_size": 64, "n_epochs": 1}
#: ``sb3-trl`` with trials that take a second, whatever sizes were drawn.
QUICK = f"""
from sb3_trl import cli
from sb3_trl.zoo import samplers

def quick(sample):
    return lambda *arguments: sample(*arguments) | {SIZES}

samplers.SAMPLERS.update({{key: quick(sample) for key, sample in samplers.SAMPLERS.items()}})
cli.main()
"""
SMALL = "n_steps:64 batch_size:32 n_epochs:1"


@pytest.fixture
def quick(monkeypatch):
    """Trials in this process take a second too."""
    for key, sample in SAMPLERS.items():
        monkeypatch.setitem(SAMPLERS, key, lambda *arguments, sample=sample: sample(*arguments) | SIZES)


def start(folder, line: str) -> subprocess.Popen:
    """Start the command in a process of its own, and return it when it begins to work."""
    command = [sys.executable, "-u", "-c", QUICK, *line.split()]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout.readline()
    return process


def load(folder, storage: str) -> optuna.Study:
    if storage.endswith(".log"):
        backend = optuna.storages.journal.JournalFileBackend(str(folder / storage))
        return optuna.load_study(study_name="mine", storage=optuna.storages.JournalStorage(backend))
    return optuna.load_study(study_name="mine", storage=storage.replace("///", f"///{folder}/"))


@pytest.mark.parametrize(
    ("algo", "storage", "shared"), [("trpl", "sqlite:///study.db", False), ("fixpo", "study.log", True)]
)
def test_a_search_from_its_first_trial_to_training_with_its_best(run, quick, tmp_path, algo, storage, shared):
    """In the storage of one process, and in one that another process shares."""
    where = f"train --algo {algo} --env Pendulum-v1 --device cpu --storage {storage} --study-name mine"
    search = f"{where} -n 256 -optimize --n-evaluations 1 --eval-episodes 1 --no-optim-plots -params n_envs:1"

    assert run(f"{search} --n-trials 1")[0] == 0
    assert len(load(tmp_path, storage).trials) == 1

    with start(tmp_path, f"{search} --n-trials 2") if shared else nullcontext() as worker:
        code, printed, _ = run(f"{search} --n-trials 2")
        assert code == 0
        printed_by_worker = worker.communicate(timeout=300)[0] if shared else printed
    assert not shared or worker.returncode == 0, printed_by_worker
    study, n_trials = load(tmp_path, storage), 5 if shared else 3
    assert [trial.number for trial in study.trials] == list(range(n_trials)), "one study, resumed and shared"
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in study.trials)
    assert len({trial.params["learning_rate"] for trial in study.trials}) == n_trials
    assert "Best trial:" in printed
    assert "Best trial:" in printed_by_worker
    reports = list((tmp_path / "logs" / algo).glob("report_*.csv"))
    assert max(len(pd.read_csv(report)) for report in reports) == n_trials

    for trial in {0, study.best_trial.number}:
        assert run(f"{where} -n 64 --eval-freq -1 --trial-id {trial} -params {SMALL}")[0] == 0
        check_model(tmp_path, algo, CONVERTERS[algo](study.trials[trial].params))


def check_model(folder, algo: str, expected: dict) -> None:
    """Check that the last model was made with a trial's hyperparameters, but for its sizes."""
    runs = sorted((folder / "logs" / algo).glob("Pendulum-v1_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    model = algorithms()[algo].load(runs[-1] / "Pendulum-v1.zip", device="cpu")
    for key, value in expected.items():
        if key not in ("n_steps", "batch_size", "n_epochs", "policy_kwargs"):
            kept = getattr(model, key)
            assert (kept(1.0) if callable(kept) else kept) == pytest.approx(value), key
    assert model.policy_kwargs.items() >= expected["policy_kwargs"].items()
    saved = yaml.unsafe_load((runs[-1] / "Pendulum-v1" / "config.yml").read_text())
    assert saved["gamma"] == expected["gamma"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--trial-id 0", "--trial-id 0 needs --storage and --study-name"),
        ("--trial-id 9 --storage sqlite:///study.db --study-name mine", "there is no such trial of a study 'mine'"),
        ("--trial-id 0 --storage sqlite:///study.db --study-name other", "there is no such trial of a study 'other'"),
    ],
)
def test_a_trial_that_is_not_there(run, tmp_path, flags, message):
    optuna.create_study(study_name="mine", storage=f"sqlite:///{tmp_path}/study.db")
    code, _, err = run(f"train --algo trpl --env Pendulum-v1 -n 64 {flags}")
    assert code == 2
    assert message in err


def test_a_diverging_trial_is_pruned_and_the_search_goes_on(run, quick, monkeypatch, tmp_path):
    sample = SAMPLERS["trpl"]

    def sample_one_that_diverges(trial, *arguments):
        return sample(trial, *arguments) | {"learning_rate": 1e30 if trial.number == 0 else 1e-4}

    monkeypatch.setitem(SAMPLERS, "trpl", sample_one_that_diverges)
    code, _, _ = run(
        "train --algo trpl --env Pendulum-v1 -n 256 --device cpu -optimize --n-trials 2 --n-evaluations 1 "
        "--eval-episodes 1 --no-optim-plots --storage study.log --study-name mine -params n_envs:1"
    )
    assert code == 0
    states = [trial.state for trial in load(tmp_path, "study.log").trials]
    assert states == [TrialState.PRUNED, TrialState.COMPLETE]


def test_a_search_in_which_every_trial_diverges_says_so(run, quick, monkeypatch):
    def diverge(model):
        raise FloatingPointError("A parameter of the policy is not finite")

    monkeypatch.setattr(algorithms()["trpl"], "train", diverge)
    line = "train --algo trpl --env Pendulum-v1 -n 64 --device cpu -optimize --n-trials 1 --n-evaluations 1"
    code, _, err = run(f"{line} --no-optim-plots -params n_envs:1")
    assert code == 2
    assert "No trials are completed yet" in err


def test_workers_are_this_package():
    """The processes that the tests start import the same files."""
    command = [sys.executable, "-c", "import sb3_trl; print(sb3_trl.__file__)"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ)).stdout
    assert printed.strip() == sys.modules["sb3_trl"].__file__


# --- the samplers ---


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("key", SAMPLERS)
def test_every_sample_makes_a_model(key):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        params = SAMPLERS[key](trial, 1, 1, {})
        policy = "MlpLstmPolicy" if "recurrent" in key else "MlpPolicy"
        model = algorithms()[key](policy, "Pendulum-v1", device="cpu", **params)
        assert model.batch_size <= model.n_steps or key in SETTINGS_OF, "whose search is the RL Zoo's"
        assert CONVERTERS[key](trial.params) == params
        if key == "trpl":
            assert model.policy.action_dist.init_std == trial.params["init_std"]


def test_every_algorithm_can_be_searched():
    assert SAMPLERS.keys() == CONVERTERS.keys() == algorithms().keys()


def test_search(run, quick, tmp_path):
    """In no storage."""
    line = "train --algo trpl --env Pendulum-v1 -n 64 --device cpu --seed 0 -optimize --n-trials 1 --n-evaluations 1"
    code, out, _ = run(f"{line} --eval-episodes 1 --no-optim-plots -params n_envs:1")
    assert code == 0
    assert "trust_region_coef" in out
    assert len(list((tmp_path / "logs" / "trpl").glob("report_*.csv"))) == 1
