"""Some of a study's runs: by variant, task and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from sb3_trl.study.jobs import Run
from sb3_trl.study.reader import StudyError
from sb3_trl.zoo.registry import closest

__all__ = ["Selection"]


@dataclass(frozen=True)
class Selection:
    """The runs of these variants, on these tasks, with these seeds; ``None`` stands for all.

    :param variant: Labels of methods.
    :param task: Ids of environments.
    :param seed: Seeds.
    """

    variant: Sequence[str] | None = None
    task: Sequence[str] | None = None
    seed: Sequence[int] | None = None

    def __contains__(self, run: Run) -> bool:
        chosen = ((getattr(self, field.name), getattr(run, field.name)) for field in fields(self))
        return all(values is None or value in values for values, value in chosen)

    def check(self, runs: Sequence[Run]) -> None:
        """Check that all names are those of runs.

        :raises StudyError: for one that is not, with those that are; or if no run is of all of them.
        """
        for field in fields(self):
            known = list(dict.fromkeys(getattr(run, field.name) for run in runs))
            for value in getattr(self, field.name) or ():
                if value not in known:
                    names = [str(name) for name in known]
                    guess = closest(str(value), names) or ";"
                    raise StudyError(f"The study has no {field.name} {value!r}{guess} it has: {', '.join(names)}")
        if not any(run in self for run in runs):
            raise StudyError("The study has no run with this variant, task and seed: not every method has every task.")
