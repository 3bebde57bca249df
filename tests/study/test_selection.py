"""Some of a study's runs."""

import pytest

pytest.importorskip("rl_zoo3")

from .cases import LONG


def test_some_of_the_runs(run, tmp_path):
    (tmp_path / "long.yml").write_text(LONG)
    code, out, _ = run("study long.yml --dry-run --variants PPO TRPL --tasks Pendulum-v1 --seeds 3 11")
    assert code == 0
    assert out.splitlines() == [
        "0 of 48 runs have finished; 4 jobs are left.",
        "  TRPL on Pendulum-v1, 1000000 steps, seed 3",
        "  TRPL on Pendulum-v1, 1000000 steps, seed 11",
        "  PPO on Pendulum-v1, 1000000 steps, seed 3",
        "  PPO on Pendulum-v1, 1000000 steps, seed 11",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--variants PPPO", "The study has no variant 'PPPO', did you mean 'PPO'? it has: TRPL, full, PPO"),
        ("--tasks Hopper-v5", "The study has no task 'Hopper-v5'; it has: Pendulum-v1, CartPole-v1"),
        ("--seeds 12", "The study has no seed 12"),
        ("--variants full --tasks CartPole-v1", "not every method has every task"),
    ],
)
def test_some_that_there_are_not(run, tmp_path, flags, message):
    (tmp_path / "long.yml").write_text(LONG)
    code, _, err = run(f"study long.yml --dry-run {flags}")
    assert code == 2
    assert message in err
