"""What is seen of a study while it trains."""

from dataclasses import replace

import pytest

from sb3_trl.study.jobs import Run
from sb3_trl.study.progress import Display, running_lines
from sb3_trl.study.status import Status, read_statuses, reporter, status_path

FIRST = Run("trpl", "TRPL", "Hopper-v5", 0, 1000, 100, 5, {})
SECOND = replace(FIRST, seed=1)
OTHER = replace(FIRST, variant="PPO", algorithm="ppo")


def test_returns_of_running_trainings():
    """The latest evaluations' mean over the seeds that have one."""
    lines = running_lines([(FIRST, Status(400, 0, -10.0)), (OTHER, Status(64)), (SECOND, Status(600, 200, -20.5))])
    assert lines == [
        "  TRPL on Hopper-v5, seeds 0, 1: 500 of 1000 steps, return -15.25",
        "  PPO on Hopper-v5, seed 0: 64 of 1000 steps",
    ]


def test_a_training_writes_how_far_it_is(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    report = reporter(status_path(tmp_path, FIRST))
    report(Status(10))
    report(Status(20, 0, 1.5))  # too soon
    assert read_statuses(tmp_path, [SECOND, FIRST]) == [(FIRST, Status(10))]
    now = 102.0
    report(Status(30, 5, 2.5))
    assert read_statuses(tmp_path, [FIRST]) == [(FIRST, Status(30, 5, 2.5))]
    status_path(tmp_path, FIRST).write_text("")  # is being written
    assert read_statuses(tmp_path, [FIRST]) == []
    reporter(tmp_path / "elsewhere" / "file")(Status(1))
    assert not (tmp_path / "elsewhere").exists()


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_the_time_left_is_that_of_the_steps_left(clock, capsys):
    """A run that goes on from a checkpoint has made its steps before, in no time."""
    display = Display(2, 0, 1000, lambda: [(FIRST, Status(800, 600, 1.0))])
    clock[0] = 60.0
    assert display.update() == 200
    display.ended("A: finished", 300)
    assert capsys.readouterr().out == "[1/2] A: finished, about 0:01:00 left\n"


def test_without_a_terminal_a_line_is_printed_now_and_then(clock, capsys):
    display = Display(2, 0, 1000, lambda: [(FIRST, Status(400, 0, 7.0))])
    printed = []
    for clock[0] in (1.0, 601.0, 602.0, 1202.0):
        display.update()
        printed.append(capsys.readouterr().out)
    line = "  TRPL on Hopper-v5, seed 0: 400 of 1000 steps, return 7\n"
    assert printed == ["", line, "", line]


def test_a_terminal_has_the_lines_below_the_bar(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    display = Display(2, 0, 1000, lambda: [(FIRST, Status(400, 0, 7.0))])
    display.update()
    _, *below = display._progress.get_renderables()
    assert [str(text) for text in below] == ["  TRPL on Hopper-v5, seed 0: 400 of 1000 steps, return 7"]
