"""A study: algorithms × tasks × seeds, trained one after the other or side by side, and their results as a table."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_trl.seeds.batch import SeedBatch
    from sb3_trl.study.reader import StudyError
    from sb3_trl.study.selection import Selection
    from sb3_trl.study.study import Study

_MODULES = {
    "SeedBatch": "seeds.batch",
    "Selection": "study.selection",
    "Study": "study.study",
    "StudyError": "study.reader",
}

__all__ = ["SeedBatch", "Selection", "Study", "StudyError"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'sb3_trl.study' has no attribute {name!r}")
    return getattr(import_module(f"sb3_trl.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
