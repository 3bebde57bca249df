"""``sb3-trl study FILE.yml``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sb3_trl.study.jobs import CHECKPOINT_MINUTES

if TYPE_CHECKING:
    from sb3_trl.study.study import Study

__all__ = ["main"]


def main() -> None:
    """Train the study that the arguments name; end with status 1 if a run failed."""
    arguments = _parser().parse_args()
    from sb3_trl.study.selection import Selection
    from sb3_trl.study.study import Study, describe, failures

    selection = Selection(arguments.variants, arguments.tasks, arguments.seeds)
    study = Study.load(arguments.file, arguments.out, arguments.gym_packages, selection)
    if arguments.dry_run:
        print(describe(study, study.jobs(arguments.seed_batch, arguments.device, arguments.rerun_changed)))
        return
    try:
        failed = study.run(
            arguments.jobs,
            arguments.backend,
            arguments.address,
            arguments.seed_batch,
            arguments.device,
            arguments.rerun_changed,
            arguments.checkpoint_minutes,
        )
    except KeyboardInterrupt:
        print(f"\nInterrupted. {_kept(study)} The same command goes on with the others.", file=sys.stderr)
        raise
    print(_kept(study))
    if failed:
        print(failures(study, failed), "The same command tries them again.", sep="\n", file=sys.stderr)
        sys.exit(1)


def _kept(study: Study) -> str:
    return f"{len(study.finished)} of {len(study.runs)} runs have finished: {study.store.results}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train the algorithms × tasks × seeds of a study file. Runs that have finished are not run again, "
        "and those that had begun go on from their checkpoints, so the command can be interrupted and repeated.",
    )
    parser.add_argument("file", type=Path, metavar="FILE.yml", help="the study")
    parser.add_argument("--out", type=Path, help="folder of the results (default: studies/<name>)")
    parser.add_argument("--variants", nargs="+", help="methods to train (default: all)")
    parser.add_argument("--tasks", nargs="+", help="tasks to train on (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds to train (default: all)")
    parser.add_argument("--jobs", type=_jobs, default=-1, help="processes side by side (default: one on every core)")
    parser.add_argument(
        "--backend",
        default="loky",
        choices=["loky", "ray", "dask"],
        help="this machine (loky, the default) or a cluster",
    )
    parser.add_argument("--address", help="of the cluster of Ray or Dask (default: one on this machine)")
    parser.add_argument(
        "--seed-batch",
        action=argparse.BooleanOptionalAction,
        help="train seeds of one variant on one task side by side in one process (default: where the algorithm can, "
        "and trains long enough to repay compiling)",
    )
    parser.add_argument("--device", default="cpu", help="torch's device (default: cpu)")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="modules that register environments")
    parser.add_argument("--rerun-changed", action="store_true", help="train runs again whose settings have changed")
    parser.add_argument(
        "--checkpoint-minutes",
        type=_minutes,
        default=CHECKPOINT_MINUTES,
        metavar="MINUTES",
        help="write a run's checkpoint at most so often (default: %(default)g)",
    )
    parser.add_argument("--dry-run", action="store_true", help="list what is left to do")
    return parser


def _jobs(text: str) -> int:
    jobs = int(text)
    if jobs != -1 and jobs < 1:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more, or -1 for one on every core")
    return jobs


def _minutes(text: str) -> float:
    minutes = float(text)
    if not minutes >= 0:
        raise argparse.ArgumentTypeError(f"{text}: give a number of minutes, 0 or more")
    return minutes
