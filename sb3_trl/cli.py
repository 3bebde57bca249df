"""``sb3-trl <command>``: the RL Zoo's commands, which know this package's algorithms.

Every command takes the flags of ``python -m rl_zoo3.<command>``; ``export``, ``study``, ``report`` and
``reproduce`` are this package's own.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from sb3_trl.version import __version__
from sb3_trl.zoo.registry import closest, register
from sb3_trl.zoo.scripts import INSTALL, enjoy, load_from_hub, plot, push_to_hub, run_script

__all__ = ["main"]


class Command(NamedTuple):
    """One command: what it does, and how to run it once the algorithms are registered."""

    summary: str
    run: Callable[[], None]


COMMANDS = {
    "train": Command("train an agent, or search for hyperparameters (-optimize)", lambda: _train()),
    "enjoy": Command("run a trained agent and print its returns", enjoy),
    "plot-train": Command("plot training returns", lambda: plot("plot_train")),
    "all-plots": Command("plot and tabulate the evaluations of several runs", lambda: plot("all_plots")),
    "plot-from-file": Command("plot what all-plots wrote", lambda: plot("plot_from_file")),
    "record-video": Command("record a video of a trained agent", lambda: run_script("rl_zoo3.record_video")),
    "record-training": Command("record a video of an agent's training", lambda: run_script("rl_zoo3.record_training")),
    "benchmark": Command("evaluate every trained agent of a folder", lambda: run_script("rl_zoo3.benchmark")),
    "push-to-hub": Command("upload a trained agent", push_to_hub),
    "load-from-hub": Command("download a trained agent", load_from_hub),
    "export": Command("write a trained policy to a file: ONNX, TorchScript, torch.export", lambda: _export()),
    "study": Command("train the algorithms × tasks × seeds of a study file", lambda: _study()),
    "report": Command("tables and pictures of a study's results", lambda: _report()),
    "reproduce": Command("run and draw a table or figure of the papers (--list)", lambda: _reproduce()),
}

#: Commands whose errors are put into words: those that people give hyperparameters and folders of agents.
EXPLAINED = (
    "train",
    "enjoy",
    "record-video",
    "record-training",
    "push-to-hub",
    "load-from-hub",
    "plot-from-file",
    "export",
    "study",
    "report",
    "reproduce",
)

HELP = f"""usage: sb3-trl <command> [flags]

The RL Zoo with the algorithms of sb3_trl; flags are those of python -m rl_zoo3.<command>, and export, study,
report and reproduce have their own.

commands:
{chr(10).join(f"  {name:16} {command.summary}" for name, command in COMMANDS.items())}

  sb3-trl <command> --help    the command's flags (--verbose 2 shows the traceback of an error)
  sb3-trl --version           the version

examples:
  sb3-trl train --algo trpl --env HalfCheetah-v5 --tensorboard-log runs --progress
  sb3-trl train --algo trpl --env Hopper-v5 --conf-file trpl_paper.yml -params projection:"'w2'"
  sb3-trl enjoy --algo trpl --env HalfCheetah-v5 -f logs
  sb3-trl export --algo trpl --env HalfCheetah-v5 -f logs --format onnx
  sb3-trl study my_study.yml --jobs 4
  sb3-trl report studies/my_study --reference PPO
  sb3-trl reproduce trpl-table1 --scale small"""


def main() -> None:
    """Run the command that the first argument names."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return
    if arguments[0] == "--version":
        print(f"sb3-trl {__version__}")
        return
    name = arguments[0].replace("_", "-")
    if name not in COMMANDS:
        _fail(
            "sb3-trl",
            f"there is no command {arguments[0]!r}{closest(name, COMMANDS) or '.'} Known: {', '.join(COMMANDS)}.",
        )
    sys.argv = [f"sb3-trl {name}", *arguments[1:]]
    _run(name, arguments[1:])


def _run(name: str, arguments: list[str]) -> None:
    """Run a command; an error in its arguments or settings becomes a message and exit status 2."""
    known, _ = _few_flags().parse_known_args(arguments)
    try:
        _prepare()
        _check_algorithm(known.algo)
        COMMANDS[name].run()
        print(end="", flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        explained = name in EXPLAINED or isinstance(error, OSError)
        if known.verbose > 1 or not explained or not _is_users(error):
            raise
        _fail(f"sb3-trl {name}", _explain(error))


def _few_flags() -> argparse.ArgumentParser:
    """The flags that are looked at before the RL Zoo parses them all."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--algo")
    parser.add_argument("--verbose", type=int, default=1)
    return parser


def _prepare() -> None:
    """Register the algorithms, and set torch to one thread."""
    try:
        register()
    except ModuleNotFoundError as error:
        _fail("sb3-trl", f"{error}. The RL Zoo and what it needs: {INSTALL}")
    import torch as th

    # Two threads in small networks wait for each other when anything else runs. --num-threads has the last word.
    th.set_num_threads(1)


def _check_algorithm(algo: str | None) -> None:
    from rl_zoo3.utils import ALGOS

    if algo is not None and algo not in ALGOS:
        raise ValueError(
            f"there is no algorithm {algo!r}{closest(algo, ALGOS) or '.'} Known: {', '.join(sorted(ALGOS))}."
        )


def _train() -> None:
    import rl_zoo3.train

    from sb3_trl.zoo.experiment import Experiment

    rl_zoo3.train.ExperimentManager = Experiment  # type: ignore[misc]
    rl_zoo3.train.train()


def _export() -> None:
    from sb3_trl.deployment.cli import main

    main()


def _study() -> None:
    from sb3_trl.study.cli import main

    main()


def _report() -> None:
    from sb3_trl.report.page import main

    main()


def _reproduce() -> None:
    from sb3_trl.papers.reproduce import main

    main()


# --- errors ---


def _is_users(error: Exception) -> bool:
    """Whether an error can come from what was asked for, and not from the middle of training."""
    from gymnasium.error import Error as GymnasiumError

    kinds = (ValueError, TypeError, KeyError, NameError, SyntaxError, ImportError, AssertionError, OSError)
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, (*kinds, GymnasiumError)) and not any(frame.name == "learn" for frame in frames)


def _explain(error: Exception) -> str:
    """Return what went wrong, and what to do about it where that is known."""
    message = str(error) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and "pip install" not in message:
        return f"{message}. What the RL Zoo needs comes with {INSTALL}; environments are imported by --gym-packages."
    if isinstance(error, (NameError, SyntaxError)):
        return (
            f"{message}. Values after -params and --env-kwargs are Python, in which a string has quotes: "
            "-params projection:\"'w2'\""
        )
    if isinstance(error, KeyError):
        return f"{message} is missing."
    if "not found in gym registry" in message:
        message = message.replace(", you maybe meant 'no close match found...'?", ".")
        return f"{message} Packages that bring environments of their own are imported by --gym-packages."
    if "v2 and v3 based environments" in message:
        return f"{message} Use the v5 task."
    return message


def _fail(program: str, message: str) -> NoReturn:
    sys.stdout.flush()
    print(f"{program}: error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
