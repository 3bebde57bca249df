"""What is missing in the results of a study that has not finished."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sb3_trl.report.statistics import RUN
from sb3_trl.study.store import PLAN

__all__ = ["missing_runs", "missing_text"]


def missing_runs(
    paths: Sequence[Path],
    table: pd.DataFrame,
    variants: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
) -> tuple[pd.DataFrame, int]:
    """Return the runs that are to be and are not in the results, and how many there are to be.

    :param paths: Results, or folders that hold them; beside those of a study stands which runs there are to be.
    :param table: What was read from them.
    :param variants: Those that matter; all by default.
    :param tasks: Those that matter; all by default.
    """
    files = [(path if path.is_dir() else path.parent) / PLAN for path in paths]
    plans = [pd.read_csv(file) for file in dict.fromkeys(files) if file.is_file()]
    if not plans:
        return pd.DataFrame(columns=RUN), 0
    plan = pd.concat(plans, ignore_index=True).drop_duplicates()
    for column, names in (("variant", variants), ("task", tasks)):
        plan = plan if names is None else plan[plan[column].isin(names)]
    there = set(table[RUN].drop_duplicates().itertuples(index=False, name=None))
    is_missing = [run not in there for run in plan[RUN].itertuples(index=False, name=None)]
    return plan[is_missing], len(plan)


def missing_text(missing: pd.DataFrame, n_runs: int) -> str:
    """Return a sentence that says which runs are missing, nothing if none are.

    :param missing: Columns ``variant``, ``task`` and ``seed``.
    :param n_runs: How many runs there are to be.
    """
    if missing.empty:
        return ""
    groups = [
        f"{variant} on {task} (seed{'s' if len(own) > 1 else ''} {', '.join(map(str, own.seed))})"
        for (variant, task), own in missing.groupby(["variant", "task"], sort=False)
    ]
    verb = "is" if len(missing) == 1 else "are"
    return f"This study has not finished: {len(missing)} of {n_runs} runs {verb} missing here, {', '.join(groups)}."
