"""``sb3-trl <command>``: the RL Zoo's commands with this package's algorithms registered."""

from __future__ import annotations

import sys

import torch as th

from sb3_trl.zoo.registry import algorithms, hyperparameter_file, register

__all__ = ["main"]


def main() -> None:
    """Run one RL Zoo command; the first argument names it."""
    command, *arguments = sys.argv[1:]
    register()
    th.set_num_threads(1)
    sys.argv = [f"sb3-trl {command}", *_with_configuration(arguments)]
    if command == "train":
        from rl_zoo3.train import train

        train()


def _with_configuration(arguments: list[str]) -> list[str]:
    """Resolve ``--conf-file`` among the package's YAML files, and supply it for the package's algorithms."""
    for flag in ("--conf-file", "-conf"):
        if flag in arguments:
            position = arguments.index(flag) + 1
            found = hyperparameter_file(arguments[position])
            return [*arguments[:position], str(found or arguments[position]), *arguments[position + 1 :]]
    algo = arguments[arguments.index("--algo") + 1] if "--algo" in arguments else None
    if algo in algorithms():
        return [*arguments, "--conf-file", str(hyperparameter_file(algo))]
    return arguments


if __name__ == "__main__":
    main()
