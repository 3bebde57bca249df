"""Studies that several tests look at."""

import gymnasium as gym
import pytest
import torch as th
from support import PointEnv

from sb3_trl.study import Study

from . import cases


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The small study, trained run by run in this process, in which torch's threads are the caller's afterwards."""
    study, threads = cases.load(tmp_path_factory.mktemp("undisturbed")), th.get_num_threads()
    th.set_num_threads(threads + 1)
    assert study.run(jobs=1, seed_batch=False) == []
    assert th.get_num_threads() == threads + 1
    th.set_num_threads(threads)
    return study


class FailingEnv(PointEnv):
    """Fails in the middle of the training of odd seeds."""

    def reset(self, *, seed=None, options=None):
        self.fails = seed % 2 == 1 if seed is not None else self.fails
        self.total = 0 if seed is not None else self.total
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.total += 1
        if self.fails and self.total > 100:
            raise RuntimeError("the simulator broke")
        return super().step(action)


@pytest.fixture
def failing():
    gym.register("FailingStudy-v0", FailingEnv)
    yield "FailingStudy-v0"
    gym.registry.pop("FailingStudy-v0")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Write a study file and load it."""
    monkeypatch.chdir(tmp_path)

    def call(text: str) -> Study:
        (tmp_path / "study.yml").write_text(text)
        return Study.load("study.yml")

    return call
