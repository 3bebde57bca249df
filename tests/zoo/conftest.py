"""Agents that several tests look at."""

import shutil

import pytest
from support import call

from .cases import ENV, SMALL


@pytest.fixture(scope="session")
def agents(tmp_path_factory):
    """A folder with two trained agents of each algorithm."""
    folder = tmp_path_factory.mktemp("agents")
    for algo, small in SMALL.items():
        for seed in (0, 1):
            call(
                f"train --algo {algo} --env {ENV} -n 2000 --seed {seed} --device cpu --eval-freq 1000 "
                f"--eval-episodes 2 --num-threads 1 --save-freq 2000 {small}",
                folder,
            )
    return folder


@pytest.fixture
def folder(agents, tmp_path, monkeypatch):
    """The current directory: a copy of the agents."""
    shutil.copytree(agents / "logs", tmp_path / "logs")
    monkeypatch.chdir(tmp_path)
    return tmp_path
