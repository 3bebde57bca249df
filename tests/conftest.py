import sys

import pytest
import torch as th

th.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    """Every test draws the same random numbers, whichever ran before it."""
    th.manual_seed(0)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run ``sb3-trl`` in a folder of its own; return its exit status and what it printed."""
    rl_zoo3_train = pytest.importorskip("rl_zoo3.train")
    from sb3_trl.zoo import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rl_zoo3_train, "ExperimentManager", rl_zoo3_train.ExperimentManager)

    def call(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sb3-trl", *line.split()])
        code = 0
        try:
            cli.main()
        except SystemExit as status:
            code = status.code
        return code, *capsys.readouterr()

    threads = th.get_num_threads()
    yield call
    th.set_num_threads(threads)
