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
    (tmp_path / "small.yml").write_text(ONE.replace("Pendulum-v1", "CrashingStudy-v0"))
    monkeypatch.syspath_prepend(tmp_path)
    study = Study.load(tmp_path / "small.yml", tmp_path / "out", packages=["crashing_env"])
    with pytest.raises(StudyError, match=r"(?s)A process was lost.*the same command goes on"):
        study.run(jobs=2)
    assert table(study.store.folder) == []
    gym.registry.pop("CrashingStudy-v0")


@pytest.mark.parametrize(("backend", "module", "n_runs"), [("ray", "ray", 1), ("dask", "distributed", 2)])
def test_a_cluster_gives_the_same_numbers(undisturbed, tmp_path, backend, module, n_runs):
    """Of FixPO, and of TRPL beside it where processes may have threads."""
    pytest.importorskip(module, reason=f"{backend} is not installed")
    start, end = SMALL.index("  TRPL") if n_runs == 1 else SMALL.index("  PPO:"), SMALL.index("  FixPO:")
    study = load(tmp_path, (SMALL[:start] + SMALL[end:]).replace("seeds: 2", "seeds: [1]"))
    assert study.run(jobs=2, backend=backend) == []
    mine = [row for row in table(undisturbed.store.folder) if is_of(row, list(study.runs))]
    assert table(study.store.folder) == mine
    assert len(mine) == 2 * n_runs


def test_without_joblib(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    (tmp_path / "one.yml").write_text(ONE)
    code, _, err = run("study one.yml")
    assert code == 2
    assert err.strip().endswith('pip install "sb3-trl[study]"')
