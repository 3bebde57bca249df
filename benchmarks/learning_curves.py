"""Train several methods on one task, several seeds each, and draw their learning curves and trust regions.

Every run is one ``sb3-trl train`` command in a process of its own. Finished runs are not run again, so the
command can be interrupted and repeated; ``--jobs`` runs go side by side, one thread each.

    python benchmarks/learning_curves.py --env HalfCheetah-v5 --seeds 3 --timesteps 1000000 \\
        --method "TRPL-KL (paper)=trpl trpl_paper.yml env_wrapper:None" \\
        --method "PPO (RL Zoo)=ppo ppo_v5.yml" \\
        --out docs/results/halfcheetah
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

LOGGED = (
    "trust_region/kl_mean",
    "trust_region/kl_max",
    "trust_region/violation_fraction",
    "trust_region/projected_fraction",
    "trust_region/entropy",
    "rollout/ep_rew_mean",
    "time/fps",
)


@dataclass(frozen=True)
class Run:
    """One training run: a method (label, RL Zoo key, YAML file), a task and a seed."""

    label: str
    algo: str
    config: str
    params: tuple[str, ...]
    env: str
    seed: int
    folder: Path

    @property
    def is_finished(self) -> bool:
        """Whether its model was saved."""
        return self.result is not None

    @property
    def result(self) -> Path | None:
        """The folder of the finished run, ``None`` before it has finished."""
        models = list((self.folder / self.algo).glob(f"{self.env}_*/{self.env}.zip"))
        return models[0].parent if models else None

    def train(self, timesteps: int, eval_freq: int, eval_episodes: int) -> None:
        """Run it, from the start: what an interrupted run left behind is removed."""
        if self.is_finished:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        options = {
            "--algo": self.algo,
            "--env": self.env,
            "--conf-file": self.config,
            "--seed": self.seed,
            "--n-timesteps": timesteps,
            "--eval-freq": eval_freq,
            "--eval-episodes": eval_episodes,
            "--log-folder": self.folder,
            "--tensorboard-log": self.folder / "tensorboard",
            "--device": "cpu",
            "--verbose": 0,
        }
        command = [sys.executable, "-m", "sb3_trl.cli", "train"]
        command += [str(word) for option in options.items() for word in option]
        command += ["-params", *self.params] if self.params else []
        with (self.folder / "log.txt").open("w") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            code = subprocess.call(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        print(
            f"{self.label}, seed {self.seed}: {'finished' if code == 0 else f'FAILED, see {log.name}'}",
            flush=True,
        )

    def table(self) -> pd.DataFrame:
        """Return one row per logged value: label, env, seed, step, key, value."""
        assert self.result is not None
        evaluations = np.load(self.result / "evaluations.npz")
        rows = [
            (step, "eval/return", returns.mean())
            for step, returns in zip(evaluations["timesteps"], evaluations["results"], strict=True)
        ]
        for file in (self.folder / "tensorboard").rglob("events*"):
            events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
            for key in set(LOGGED) & set(events.Tags()["scalars"]):
                rows += [(event.step, key, event.value) for event in events.Scalars(key)]
        table = pd.DataFrame(rows, columns=["step", "key", "value"]).sort_values(["key", "step"])
        return table.assign(method=self.label, env=self.env, seed=self.seed)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw evaluation return, mean and maximal KL and entropy: a thin line per seed, a thick one for their mean."""
    panels = {
        "eval/return": "evaluation return",
        "trust_region/kl_mean": "mean KL(acting ‖ old) per update",
        "trust_region/kl_max": "largest KL(acting ‖ old) of any state",
        "trust_region/entropy": "entropy",
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axis, (key, title) in zip(axes, panels.items(), strict=True):
        for colour, (method, runs) in enumerate(table[table.key == key].groupby("method", sort=False)):
            curves, above = [], -colour  # the first method is drawn on top
            for _, run in runs.groupby("seed"):
                axis.plot(run.step, run.value, color=f"C{colour}", alpha=0.3, linewidth=0.7, zorder=above)
                curves.append(run.value.to_numpy())
            length = min(map(len, curves))
            steps = run.step.to_numpy()[:length]
            mean = np.mean([c[:length] for c in curves], axis=0)
            axis.plot(steps, mean, color=f"C{colour}", label=method, zorder=above + 0.5)
        axis.set(title=title, xlabel="environment steps")
        if "kl" in key:
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)


def summary(table: pd.DataFrame) -> str:
    """Return Markdown tables: final evaluation returns (mean of the last five), and the trust region over training."""
    returns = table[table.key == "eval/return"]
    last = returns.groupby(["method", "seed"], sort=False).tail(5).groupby(["method", "seed"], sort=False).value.mean()
    lines = ["| method | final evaluation return | of each seed |", "|---|---|---|"]
    for method, values in last.groupby("method", sort=False):
        lines.append(f"| {method} | {values.mean():.0f} | {', '.join(f'{value:.0f}' for value in values)} |")
    lines += ["", "| method | mean KL of an update: mean ± std over updates | largest | largest KL of any state |"]
    lines += ["|---|---|---|---|"]
    for method, runs in table.groupby("method", sort=False):
        means, largest = (runs[runs.key == f"trust_region/{key}"].value for key in ("kl_mean", "kl_max"))
        if len(means):
            moments = f"{means.mean():.4f} ± {means.std():.4f}"
            lines.append(f"| {method} | {moments} | {means.max():.4f} | {largest.max():.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--method", action="append", required=True, metavar="LABEL=ALGO FILE.yml [PARAMETER:VALUE ...]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--timesteps", type=int, default=1_000_000)
    parser.add_argument("--eval-freq", type=int, default=20_480)
    parser.add_argument("--eval-episodes", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--logs", type=Path, default=Path("logs/learning_curves"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, required=True, help="CSV, picture and table are written to OUT.*")
    args = parser.parse_args()

    runs = []
    for method in args.method:
        label, _, spec = method.partition("=")
        algo, config, *params = shlex.split(spec)
        for seed in range(args.seeds):
            folder = args.logs / args.env / label.replace(" ", "_") / f"seed{seed}"
            runs.append(Run(label, algo, config, tuple(params), args.env, seed, folder))
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda run: run.train(args.timesteps, args.eval_freq, args.eval_episodes), runs))

    table = pd.concat([run.table() for run in runs if run.is_finished])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(f"{args.out}.csv.gz", index=False, float_format="%.6g")
    draw(table, Path(f"{args.out}.png"))
    packages = ("torch", "stable_baselines3", "sb3_contrib", "gymnasium", "mujoco", "sb3_trl")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    text = f"{summary(table)}\n\n{args.timesteps} steps; {versions}; {machine}\n"
    Path(f"{args.out}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
