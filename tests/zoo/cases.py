"""The agents that the RL Zoo's commands are tried on."""

import re
from pathlib import Path

import imageio.v3 as imageio
import numpy as np

from sb3_trl import TRPL, FixPO

ALGORITHMS = {"trpl": TRPL, "fixpo": FixPO}
ENV = "Pendulum-v1"
SMALL = {
    "trpl": "-params n_envs:2 n_steps:200 batch_size:100 n_epochs:1 n_critic_epochs:1",
    "fixpo": "-params n_envs:2 n_steps:200 batch_size:100 n_epochs:1",
}


def mean_reward(printed: str) -> float:
    return float(re.search(r"Mean reward: (-?[\d.]+)", printed).group(1))


def frames(path: Path) -> np.ndarray:
    """Return the pictures of a video, decoded."""
    return np.stack(list(imageio.imiter(path)))
