"""What the RL Zoo has to know of this package: its algorithms and where their YAML files are."""

from __future__ import annotations

from pathlib import Path

import sb3_trl

__all__ = ["algorithms", "hyperparameter_file", "register"]


def algorithms() -> dict[str, type]:
    """Return the package's algorithms by their RL Zoo key."""
    from sb3_trl import TRPL

    return {"trpl": TRPL}


def register() -> None:
    """Add the package's algorithms to the RL Zoo's dictionaries, in place.

    ``rl_zoo3`` reads its algorithms from one dict object shared by all its modules, so after this call
    every one of its scripts knows them. Calling it twice changes nothing more.

    :raises ImportError: if ``rl_zoo3`` is not installed.
    """
    from rl_zoo3.utils import ALGOS

    ALGOS.update(algorithms())


def hyperparameter_file(name: str) -> Path | None:
    """Return the path of a YAML file that comes with the package, ``None`` if there is none of that name.

    :param name: ``"trpl"`` or ``"trpl.yml"``.
    """
    name = name if name.endswith((".yml", ".yaml")) else f"{name}.yml"
    package = Path(sb3_trl.__file__).parent
    for folder in (package / "hyperparams", package.parent / "hyperparams"):
        if (folder / name).is_file():
            return folder / name
    return None
