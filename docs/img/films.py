"""Train the agents of the gallery and film them, on a machine without a screen too.

    python docs/img/films.py
    python docs/img/films.py --only HalfCheetah-v5

Each is trained by the command that stands beside its film in docs/gallery.md, which takes two to ten minutes on an idle
core; one that has been trained in ``--runs`` is only filmed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from huggingface_sb3 import EnvironmentName
from PIL import Image
from stable_baselines3.common.utils import set_random_seed

from sb3_trl.deployment.cli import load
from sb3_trl.zoo.experiment import draws_actions
from sb3_trl.zoo.registry import register

HERE = Path(__file__).parent
#: Frames per second that a film comes near to; a GIF counts in hundredths of a second.
FPS = 16


class Film(NamedTuple):
    """An agent, how long it is trained, and what is shown of it; MuJoCo's camera follows its body at a distance."""

    algo: str
    steps: int
    seconds: float
    size: tuple[int, int]
    colors: int
    distance: float | None = None

    def command(self, env_id: str, runs: Path) -> str:
        """Return the command that trains it."""
        return f"sb3-trl train --algo {self.algo} --env {env_id} -n {self.steps} --seed 0 --eval-freq -1 -f {runs}"


FILMS = {
    "HalfCheetah-v5": Film("trpl", 400_000, 4, (330, 220), 64, distance=3.2),
    "Walker2d-v5": Film("fixpo", 600_000, 5, (300, 200), 48, distance=3.4),
    "LunarLander-v3": Film("trpl", 200_000, 6, (300, 200), 24),
    "Pendulum-v1": Film("trpl", 100_000, 5, (200, 200), 24),
    "sb3_trl/VizdoomHealthGathering-v0": Film("recurrent_fixpo", 250_000, 8, (160, 120), 48),
}


def title(env_id: str) -> str:
    """Return the name of a task's film: "walker2d" of Walker2d-v5."""
    return env_id.rpartition("/")[2].rpartition("-")[0].lower()


def train(command: str) -> None:
    """Run an ``sb3-trl`` command with this interpreter."""
    subprocess.run([sys.executable, "-m", "sb3_trl.cli", *shlex.split(command)[1:]], check=True)


def _pictures(film: Film) -> dict[str, Any]:
    if film.distance is None:
        return {}
    camera = {"azimuth": 90.0, "elevation": -14.0, "distance": film.distance}
    width, height = film.size
    return {"width": 2 * width, "height": 2 * height, "default_camera_config": camera}


def _look_at_body(env: gym.Env) -> None:
    simulation = env.unwrapped
    viewer = simulation.mujoco_renderer._get_viewer("rgb_array")
    viewer.cam.lookat[:] = [simulation.data.body(1).xpos[0], 0.0, 0.8 * simulation.init_qpos[1] + 0.4]


def play(env_id: str, film: Film, runs: Path) -> tuple[list[Image.Image], int]:
    """Return the frames of the agent in ``runs``, and milliseconds of each; in games it draws its actions."""
    choice = {"exp_id": 0, "load_best": False, "load_checkpoint": None, "load_last_checkpoint": False}
    pictures = {"render_mode": "rgb_array", **_pictures(film)}
    model, _ = load(argparse.Namespace(algo=film.algo, env=env_id, folder=str(runs), env_kwargs=pictures, **choice))
    env: Any = model.get_env()
    (shown,) = env.unwrapped.envs
    fps, is_drawn = shown.metadata["render_fps"], draws_actions(env_id)
    stride = max(1, round(fps / FPS))
    frames: list[Image.Image] = []
    env.seed(0)
    set_random_seed(0)
    observation, state, start = env.reset(), None, np.ones(1, dtype=bool)
    for step in range(int(film.seconds * fps)):
        if step % stride == 0:
            if film.distance is not None:
                _look_at_body(shown)
            frames.append(Image.fromarray(shown.render()).resize(film.size, Image.Resampling.LANCZOS))
        actions, state = model.predict(observation, state=state, episode_start=start, deterministic=not is_drawn)
        observation, _, start, _ = env.step(actions)
    env.close()
    return frames, 10 * round(100 * stride / fps)


def _palette(frames: list[Image.Image], colors: int) -> Image.Image:
    """Return a palette, half of it of what fills the pictures and half of what is rare in them."""
    sample = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames[:: max(1, len(frames) // 8)]]))
    entries: list[int] = []
    for method in (Image.Quantize.MEDIANCUT, Image.Quantize.MAXCOVERAGE):
        entries += sample.quantize(colors // 2, method=method).getpalette()[: 3 * (colors // 2)]
    palette = Image.new("P", (1, 1))
    palette.putpalette(entries)
    return palette


def save(frames: list[Image.Image], milliseconds: int, colors: int, path: Path) -> None:
    """Write a GIF with one palette for all frames, so that what stands still costs nothing."""
    palette = _palette(frames, colors)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=milliseconds, loop=0, optimize=False)


def main() -> None:
    """Train, film and save what ``--only`` names, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FILMS, default=list(FILMS))
    parser.add_argument("--runs", type=Path, default=Path("runs/films"))
    parser.add_argument("--out", type=Path, default=HERE / "films")
    args = parser.parse_args()

    os.environ.setdefault("MUJOCO_GL", "egl")  # before MuJoCo is imported
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    th.set_num_threads(1)
    register()
    args.out.mkdir(parents=True, exist_ok=True)
    for env_id in args.only:
        film = FILMS[env_id]
        name = EnvironmentName(env_id)
        if not (args.runs / film.algo / f"{name}_1" / f"{name}.zip").is_file():
            train(film.command(env_id, args.runs))
        path = args.out / f"{title(env_id)}.gif"
        save(*play(env_id, film, args.runs), film.colors, path)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
