"""What the RL Zoo's scripts need around them to work for this package's algorithms, on any machine."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sb3_trl.zoo.camera import bodies_are_followed

__all__ = ["INSTALL", "enjoy", "load_from_hub", "plot", "push_to_hub", "run_script"]

INSTALL = 'pip install "sb3-trl[zoo]"'

#: One of the commands of the card that ``rl_zoo3`` writes.
COMMAND_OF_A_CARD = re.compile(r"--algo (\S+) --env (\S+) -orga (\S+)")


def run_script(module: str) -> None:
    """Run a module that is a script; films show the agent, processes know the algorithms and find ``ffmpeg``."""
    with bodies_are_followed(), games_are_played_as_trained(), children_know_the_algorithms(), ffmpeg_is_found():
        runpy.run_module(module, run_name="__main__")


def enjoy() -> None:
    """Run ``rl_zoo3.enjoy``; in games agents act as in evaluations."""
    script = import_module("rl_zoo3.enjoy")
    with games_are_played_as_trained():
        script.enjoy()


def push_to_hub() -> None:
    """Run ``rl_zoo3.push_to_hub``; the model card says how this package plays, loads and trains the agent."""
    _restore_generate_metadata()
    with cards_of_this_package():
        run_script("rl_zoo3.push_to_hub")


def load_from_hub() -> None:
    """Run ``rl_zoo3.load_from_hub``; agents without normalisation are loaded too."""
    with missing_files_are_http_errors():
        run_script("rl_zoo3.load_from_hub")


def plot(name: str) -> None:
    """Run a function of ``rl_zoo3.plots``; where there is no screen, figures become files."""
    with figures_are_shown_or_saved():
        try:
            getattr(import_module("rl_zoo3.plots"), name)()
        except ValueError as error:
            if name == "plot_from_file" and "empty" in str(error):
                raise ValueError("A method has fewer than two runs, which have no spread to plot.") from error
            raise


@contextmanager
def children_know_the_algorithms() -> Iterator[None]:
    """While active, ``python -m rl_zoo3.record_video`` and ``python enjoy.py`` start ``sb3-trl`` instead.

    That is how ``record_training`` and ``benchmark`` call them.
    """
    original = subprocess.call
    scripts = {("python", "-m", "rl_zoo3.record_video"): "record-video", ("python", "enjoy.py"): "enjoy"}

    def call(command: Any, *args: Any, **kwargs: Any) -> int:
        for words, name in scripts.items():
            if isinstance(command, list) and tuple(command[: len(words)]) == words:
                command = [sys.executable, "-m", "sb3_trl.cli", name, *command[len(words) :]]
                break
        return original(command, *args, **kwargs)

    subprocess.call = call  # type: ignore[assignment]
    try:
        yield
    finally:
        subprocess.call = original


@contextmanager
def games_are_played_as_trained() -> Iterator[None]:
    """While active, agents draw their actions in the games in which evaluations do, without ``--deterministic``."""
    from rl_zoo3.exp_manager import ExperimentManager

    from sb3_trl.zoo.experiment import draws_actions

    original = ExperimentManager.is_minigrid
    ExperimentManager.is_minigrid = staticmethod(draws_actions)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ExperimentManager.is_minigrid = staticmethod(original)  # type: ignore[method-assign]


@contextmanager
def ffmpeg_is_found() -> Iterator[None]:
    """While active, there is an ``ffmpeg`` on the path: moviepy's own, if the system has none."""
    if shutil.which("ffmpeg"):
        yield
        return
    from imageio_ffmpeg import get_ffmpeg_exe

    path = os.environ["PATH"]
    with TemporaryDirectory() as folder:
        Path(folder, "ffmpeg").symlink_to(get_ffmpeg_exe())
        os.environ["PATH"] = f"{path}{os.pathsep}{folder}"
        try:
            yield
        finally:
            os.environ["PATH"] = path


@contextmanager
def cards_of_this_package() -> Iterator[None]:
    """While active, model cards are those of ``sb3_trl.zoo.card``: ``rl_zoo3`` does not know the algorithms."""
    from huggingface_hub import repocard

    from sb3_trl.zoo.card import Agent, model_card

    original = repocard.metadata_save

    def save(local_path: str | Path, data: dict[Any, Any]) -> None:
        path = Path(local_path)
        algo, env_id, organization = COMMAND_OF_A_CARD.search(path.read_text()).groups()  # type: ignore[union-attr]
        agent = Agent(algo, env_id, organization, repo=path.parent.name)
        path.write_text(model_card(agent, data["model-index"][0]["name"], path.parent))
        original(local_path, data | {"tags": [*data["tags"], "sb3-trl"]})

    repocard.metadata_save = save
    try:
        yield
    finally:
        repocard.metadata_save = original


@contextmanager
def missing_files_are_http_errors() -> Iterator[None]:
    """While active, a file that is not on the hub raises the error of ``requests``, for which ``rl_zoo3`` looks."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError
    from requests.exceptions import HTTPError

    original = huggingface_hub.hf_hub_download

    def download(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except EntryNotFoundError as error:
            raise HTTPError(str(error)) from error

    huggingface_hub.hf_hub_download = download
    try:
        yield
    finally:
        huggingface_hub.hf_hub_download = original


@contextmanager
def figures_are_shown_or_saved() -> Iterator[None]:
    """While active, ``plt.show`` writes the figures to PNG files if matplotlib has no window to show them in."""
    import matplotlib.pyplot as plt

    original = plt.show

    def save(*args: Any, **kwargs: Any) -> None:
        for number in plt.get_fignums():
            figure = plt.figure(number)
            title = str(figure.get_label()) or f"figure {number}"
            path = _unused_path(re.sub(r"[^\w-]+", "_", title))
            figure.savefig(path)
            print(f"There is no screen to show {title!r} on: saved to {path}")
        plt.close("all")

    if plt.get_backend().lower() == "agg":
        plt.show = save
    try:
        yield
    finally:
        plt.show = original


def _restore_generate_metadata() -> None:
    """Put back what ``rl_zoo3`` 2.9 imports from the hub's integration, whose version 3.2 has renamed it."""
    integration: Any = import_module("huggingface_sb3.push_to_hub")

    def generate_metadata(*args: Any) -> dict[str, Any]:
        return integration._generate_metadata(*args).to_dict()

    if not hasattr(integration, "generate_metadata"):
        integration.generate_metadata = generate_metadata


def _unused_path(name: str) -> Path:
    paths = (Path(f"{name}{suffix}.png") for suffix in ("", *(f"_{i}" for i in range(2, 10_000))))
    return next(path for path in paths if not path.exists())
