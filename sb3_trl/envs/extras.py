"""Packages that come with extras, such as ``pixels``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["from_extra"]


def from_extra(module: str, distribution: str | None = None, extra: str = "pixels") -> Any:
    """Import a module of a package that not everybody has installed.

    :param module: Its name, such as ``"minigrid.envs"``.
    :param distribution: What ``pip`` calls the package, where that is another name.
    :param extra: The extra that brings it.
    :raises ModuleNotFoundError: with what to install, if the package is missing.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:  # the package is there, and something else is missing
            raise
        message = f'This environment needs {distribution or package}. It comes with pip install "sb3-trl[{extra}]"'
        raise ModuleNotFoundError(message, name=package) from None
