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
from PIL import Image
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trl.zoo.registry import algorithms

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
}


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


def play(env_id: str, film: Film, folder: Path) -> tuple[list[Image.Image], int]:
    """Return the frames of the policy in ``folder``, acting without noise, and the time of each in milliseconds."""
    plain = DummyVecEnv([lambda: gym.make(env_id, render_mode="rgb_array", **_pictures(film))])
    statistics = folder / env_id / "vecnormalize.pkl"
    env = VecNormalize.load(str(statistics), plain) if statistics.is_file() else plain
    env.training = False
    model = algorithms()[film.algo].load(folder / f"{env_id}.zip", device="cpu")
    stride = max(1, round(plain.metadata["render_fps"] / FPS))
    frames: list[Image.Image] = []
    env.seed(0)
    observation = env.reset()
    for step in range(int(film.seconds * plain.metadata["render_fps"])):
        if step % stride == 0:
            if film.distance is not None:
                _look_at_body(plain.envs[0])
            frames.append(Image.fromarray(plain.envs[0].render()).resize(film.size, Image.Resampling.LANCZOS))
        observation, *_ = env.step(model.predict(observation, deterministic=True)[0])
    env.close()
    return frames, 10 * round(100 * stride / plain.metadata["render_fps"])


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
    args.out.mkdir(parents=True, exist_ok=True)
    for env_id in args.only:
        film = FILMS[env_id]
        folder = args.runs / film.algo / f"{env_id}_1"
        if not (folder / f"{env_id}.zip").is_file():
            train(film.command(env_id, args.runs))
        path = args.out / f"{env_id.partition('-')[0].lower()}.gif"
        save(*play(env_id, film, folder), film.colors, path)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
