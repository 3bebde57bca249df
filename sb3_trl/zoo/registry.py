"""What the RL Zoo has to know of this package: its algorithms, their samplers and their YAML files."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import sb3_trl

__all__ = ["SETTINGS_OF", "algorithms", "closest", "hyperparameter_file", "hyperparameter_files", "register"]

#: Algorithms whose hyperparameters are by default those of another.
SETTINGS_OF = {"lean_ppo": "ppo", "lean_trpo": "trpo", "lean_recurrent_ppo": "ppo_lstm"}


def algorithms() -> dict[str, type]:
    """Return the package's algorithms by their RL Zoo key."""
    from sb3_trl import (
        PAPI,
        TRPL,
        FixPO,
        LeanPPO,
        LeanRecurrentPPO,
        LeanTRPO,
        RecurrentFixPO,
        RecurrentTRPL,
    )

    return {
        "trpl": TRPL,
        "fixpo": FixPO,
        "papi": PAPI,
        "lean_ppo": LeanPPO,
        "lean_trpo": LeanTRPO,
        "recurrent_trpl": RecurrentTRPL,
        "recurrent_fixpo": RecurrentFixPO,
        "lean_recurrent_ppo": LeanRecurrentPPO,
    }


def register() -> None:
    """Add the package's algorithms to the RL Zoo's dictionaries, in place, and its environments to Gymnasium's.

    ``rl_zoo3`` keeps its algorithms in dict objects that all its modules share, so after this call every one of
    its scripts knows them. Calling it twice changes nothing more.

    :raises ImportError: if ``rl_zoo3`` is not installed.
    """
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
    from rl_zoo3.utils import ALGOS

    import sb3_trl.envs  # noqa: F401  registers them
    from sb3_trl.zoo.samplers import CONVERTERS, SAMPLERS

    ALGOS.update(algorithms())
    HYPERPARAMS_SAMPLER.update(SAMPLERS)
    HYPERPARAMS_CONVERTER.update(CONVERTERS)


def hyperparameter_files() -> dict[str, Path]:
    """Return the YAML files that come with the package, by name."""
    package = Path(sb3_trl.__file__).parent
    for folder in (package / "hyperparams", package.parent / "hyperparams"):
        if (folder / "trpl.yml").is_file():
            return {path.name: path for path in sorted(folder.glob("*.yml"))}
    return {}


def hyperparameter_file(name: str) -> Path | None:
    """Return the path of a YAML file that comes with the package, ``None`` if there is none of that name.

    :param name: ``"trpl"`` or ``"trpl.yml"``.
    """
    return hyperparameter_files().get(name if name.endswith(".yml") else f"{name}.yml")


def closest(name: str, known: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the known name nearest to ``name``, or nothing."""
    guesses = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {guesses[0]!r}?" if guesses else ""
