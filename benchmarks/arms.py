"""Meta-World's tasks in sb3_trl and as they come, turn by turn on one core: steps with random actions, and resets.

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
RESETS = 10  # in a row, as of environments side by side, whose episodes are equally long


def main() -> None:
    """Print a row for each task, and the mean of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=task_names("MT50"))
    parser.add_argument("--episodes", type=int, default=5, help="of 500 steps, for the median")
    arguments = parser.parse_args()
    print("| task | Meta-World | sb3_trl | ratio | reset, ms: Meta-World | sb3_trl |\n|---|---|---|---|---|---|")
    rows = np.array([_row(task, arguments.episodes) for task in arguments.tasks])
    _print_row("all, equally many steps of each", *rows.mean(0))


def _row(task: str, episodes: int) -> tuple[float, float, float, float]:
    """Return the seconds of an episode and of a reset, each Meta-World's first."""
    mine, theirs = MetaWorldEnv(task), MT50_V3[f"{task}-v3"](reward_function_version="v2")
    theirs._set_task_called = True
    theirs._freeze_rand_vec = False
    actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, 4)).astype(np.float32)
    seconds: dict[str, list[float]] = {"theirs": [], "mine": []}
    resets: dict[str, list[float]] = {"theirs": [], "mine": []}
    mine.n_goals = 2  # most resets of a long training have another of their goal before them
    for episode in range(episodes + 1):  # the first does not count: goals are drawn
        for name, env in (("theirs", theirs), ("mine", mine)):
            start = time.perf_counter()
            for _ in range(RESETS):
                env.reset()
            begun = time.perf_counter()
            for action in actions:
                env.step(action)
            if episode > 0:
                resets[name].append((begun - start) / RESETS)
                seconds[name].append(time.perf_counter() - begun)
    medians = [float(np.median(times[name])) for times in (seconds, resets) for name in ("theirs", "mine")]
    _print_row(task, *medians)
    return tuple(medians)


def _print_row(task: str, theirs: float, mine: float, their_reset: float, my_reset: float) -> None:
    speeds = f"{STEPS / theirs:.0f} | {STEPS / mine:.0f} | {theirs / mine:.2f}"
    print(f"| {task} | {speeds} | {1000 * their_reset:.1f} | {1000 * my_reset:.1f} |", flush=True)


if __name__ == "__main__":
    main()
