"""Meta-World's tasks in sb3_trl and as they come, turn by turn on one core: steps per second with random actions.

python benchmarks/arms.py [task …]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from metaworld.env_dict import MT50_V3

from sb3_trl.envs import MetaWorldEnv
from sb3_trl.envs.metaworld import task_names

STEPS = 500


def main() -> None:
    """Print a row for each task, and the mean of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=task_names("MT50"))
    parser.add_argument("--episodes", type=int, default=5, help="of 500 steps, for the median")
    arguments = parser.parse_args()
    print("| task | Meta-World | sb3_trl | ratio |\n|---|---|---|---|")
    rows = [_row(task, arguments.episodes) for task in arguments.tasks]
    theirs, mine = np.array(rows).T
    means = f"{STEPS / theirs.mean():.0f} | {STEPS / mine.mean():.0f}"
    print(f"| all, equally many steps of each | {means} | {theirs.mean() / mine.mean():.2f} |")


def _row(task: str, episodes: int) -> tuple[float, float]:
    """Return the seconds of an episode."""
    mine, theirs = MetaWorldEnv(task), MT50_V3[f"{task}-v3"](reward_function_version="v2")
    theirs._set_task_called = True
    theirs._freeze_rand_vec = False
    actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, 4)).astype(np.float32)
    seconds: dict[str, list[float]] = {"theirs": [], "mine": []}
    for _ in range(episodes):
        for name, env in (("theirs", theirs), ("mine", mine)):
            env.reset()
            start = time.perf_counter()
            for action in actions:
                env.step(action)
            seconds[name].append(time.perf_counter() - start)
    medians = float(np.median(seconds["theirs"])), float(np.median(seconds["mine"]))
    print(
        f"| {task} | {STEPS / medians[0]:.0f} | {STEPS / medians[1]:.0f} | {medians[0] / medians[1]:.2f} |", flush=True
    )
    return medians


if __name__ == "__main__":
    main()
