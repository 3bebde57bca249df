"""The command ``sb3-trl study``: its flags, its words and its status."""

import re

import pytest

pytest.importorskip("rl_zoo3")

from support import ROOT

from sb3_trl.study.rows import COLUMNS

from .cases import LONG, ONE


def test_the_command_ends_with_status_2(run, tmp_path):
    (tmp_path / "bad.yml").write_text(ONE.replace("tasks:", "taks:", 1))
    code, _, err = run("study bad.yml")
    assert code == 2
    assert err.startswith("sb3-trl study: error: bad.yml:1: unknown key 'taks'")
    assert "Traceback" not in err


def test_dry_run(run, tmp_path):
    (tmp_path / "long.yml").write_text(LONG)
    code, out, _ = run("study long.yml --dry-run")
    assert code == 0
    assert out.splitlines()[:2] == [
        "0 of 48 runs have finished; 38 jobs are left.",
        "  TRPL on Pendulum-v1, 1000000 steps, seeds side by side: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    ]
    assert not (tmp_path / "studies").exists()


def test_the_command_says_what_failed(run, tmp_path, failing):
    (tmp_path / "fails.yml").write_text(
        ONE.replace("Pendulum-v1", failing)
        .replace("seeds: 1", "seeds: [0, 1]")
        .replace("n_timesteps: 64", "n_timesteps: 128")
    )
    code, out, err = run("study fails.yml --jobs 1")
    assert code == 1
    assert "2 of 4 runs have finished: studies/fails/results.csv" in out
    assert re.search(r"2 runs failed:\n  A on FailingStudy-v0, seed 1: studies/fails/runs/A/.*/seed1.error.txt", err)
    assert (tmp_path / "studies/fails/runs/A/FailingStudy-v0/seed1.error.txt").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--address here", "--address here is that of a cluster: choose --backend ray or --backend dask."),
        ("--jobs 0", "0: give 1 or more, or -1"),
        ("--backend spark", "invalid choice: 'spark'"),
    ],
)
def test_errors_of_the_command(run, tmp_path, flags, message):
    (tmp_path / "one.yml").write_text(ONE)
    code, _, err = run(f"study one.yml {flags}")
    assert code == 2
    assert message in err


def test_the_flags_of_the_page_exist(run):
    page = (ROOT / "docs" / "studies.md").read_text()
    _, printed, _ = run("study --help")
    known = set(re.findall(r"--[a-z][\w-]*", printed))
    own = set(re.findall(r"--[a-z][\w-]*", "\n".join(re.findall(r"^sb3-trl study.*", page, re.MULTILINE))))
    assert own
    assert own | {"--rerun-changed", "--seed-batch", "--no-seed-batch", "--out", "--gym-packages"} <= known
    assert all(f"`{column}`" in page for column in COLUMNS)
