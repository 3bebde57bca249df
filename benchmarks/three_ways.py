"""Compiled training and seed batches learn what eager training learns.

    python benchmarks/three_ways.py --out docs/results/three_ways

TRPL-KL with the paper's settings on HalfCheetah-v5, the same seeds eager, compiled and as one ``SeedBatch``. Rows
are appended to a table as runs finish; what is in it is not run again.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from training import TRPL_PAPER

from sb3_trl import TRPL, SeedBatch

WAYS = ("eager", "compiled", "seed batch")
FIELDS = ("way", "seed", "step", "return", "kl_mean", "entropy", "seconds")


class Recorder(BaseCallback):
    """Keep the mean return of the last ten episodes, and the trust region's log, after every tenth rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []
        self.start = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        log = self.logger.name_to_value
        if self.num_timesteps % 20_480 or "trust_region/kl_mean" not in log:
            return
        episodes = [episode["r"] for episode in list(self.model.ep_info_buffer)[-10:]]
        self.rows.append(
            {
                "step": self.num_timesteps,
                "return": sum(episodes) / len(episodes),
                "kl_mean": log["trust_region/kl_mean"],
                "entropy": log["trust_region/entropy"],
                "seconds": time.perf_counter() - self.start,
            }
        )


def normalized(seed: int) -> VecNormalize:
    """HalfCheetah-v5 with normalised observations and rewards."""
    return VecNormalize(make_vec_env("HalfCheetah-v5", seed=seed))


def train(way: str, seeds: Sequence[int], timesteps: int) -> Iterator[tuple[int, Recorder]]:
    """Yield every seed with what its training recorded."""
    if way == "seed batch":
        recorders = {seed: Recorder() for seed in seeds}
        batch = SeedBatch(TRPL, "MlpPolicy", normalized, seeds, device="cpu", **TRPL_PAPER)
        batch.learn(timesteps, lambda model: recorders[model.seed])
        yield from recorders.items()
        return
    for seed in seeds:
        recorder = Recorder()
        model = TRPL("MlpPolicy", normalized(seed), seed=seed, device="cpu", compile=way == "compiled", **TRPL_PAPER)
        model.learn(timesteps, recorder)
        yield seed, recorder


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the returns and the divergences of the three ways, a line per seed."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for colour, (way, runs) in enumerate(table.groupby("way", sort=False)):
        for i, (_, run) in enumerate(runs.groupby("seed")):
            for axis, key in zip(axes, ("return", "kl_mean"), strict=True):
                axis.plot(run.step, run[key], color=f"C{colour}", label=None if i else way, linewidth=0.9)
    axes[0].set(title="training return (ten episodes)", xlabel="environment steps")
    axes[1].set(title="mean KL(acting ‖ old) per update", xlabel="environment steps")
    axes[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--timesteps", type=int, default=500_000)
    parser.add_argument("--out", type=Path, required=True, help="CSV and picture are written to OUT.*")
    args = parser.parse_args()
    if args.timesteps < 22_528:
        parser.error("--timesteps must be at least 22528: returns are recorded after every tenth rollout of 2048.")
    th.set_num_threads(1)
    path = args.out.with_suffix(".csv")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(",".join(FIELDS) + "\n")
    done = set(pd.read_csv(path)[["way", "seed"]].itertuples(index=False, name=None))
    for way in args.ways:
        seeds = [seed for seed in args.seeds if (way, seed) not in done]
        for seed, recorder in train(way, seeds, args.timesteps) if seeds else ():
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writerows({"way": way, "seed": seed, **row} for row in recorder.rows)
            print(way, seed, recorder.rows[-1], flush=True)
    table = pd.read_csv(path)
    draw(table, args.out.with_suffix(".png"))
    last = table.groupby(["way", "seed"], sort=False).tail(5).groupby(["way", "seed"], sort=False)
    print(last[["return", "kl_mean", "entropy"]].mean().round(3).to_string())


if __name__ == "__main__":
    main()
