"""Where jobs run: processes that die, clusters, and what has to be installed."""

import sys

import gymnasium as gym
import pytest

from sb3_trl.study import Study, StudyError

from .cases import ONE, SMALL, is_of, load, table

CRASHING = """\
import os

import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv


class CrashingEnv(PendulumEnv):
    def step(self, action):
        os._exit(9)


gym.register("CrashingStudy-v0", CrashingEnv, max_episode_steps=200)
"""


def test_a_process_that_dies_is_reported(tmp_path, monkeypatch):
    (tmp_path / "crashing_env.py").write_text(CRASHING)
    one_run = ONE[: ONE.index("  B:")].replace("Pendulum-v1", "CrashingStudy-v0")
    (tmp_path / "small.yml").write_text(one_run)
    monkeypatch.syspath_prepend(tmp_path)
    study = Study.load(tmp_path / "small.yml", tmp_path / "out", packages=["crashing_env"])
    with pytest.raises(StudyError, match=r"(?s)A process was lost.*the same command goes on"):
        study.run(jobs=2)
    assert table(study.store.folder) == []
    gym.registry.pop("CrashingStudy-v0")


@pytest.mark.parametrize(("backend", "module"), [("ray", "ray"), ("dask", "distributed")])
def test_a_cluster_gives_the_same_numbers(undisturbed, tmp_path, backend, module):
    """Of one run: whichever of its two processes trains imports for seconds."""
    pytest.importorskip(module, reason=f"{backend} is not installed")
    text = SMALL[: SMALL.index("  TRPL")] + SMALL[SMALL.index("  FixPO:") :]
    study = load(tmp_path, text.replace("seeds: 2", "seeds: [1]"))
    assert study.run(jobs=2, backend=backend) == []
    mine = [row for row in table(undisturbed.store.folder) if is_of(row, list(study.runs))]
    assert table(study.store.folder) == mine
    assert len(mine) == 2


def test_without_joblib(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    (tmp_path / "one.yml").write_text(ONE)
    code, _, err = run("study one.yml")
    assert code == 2
    assert err.strip().endswith('pip install "sb3-trl[study]"')
