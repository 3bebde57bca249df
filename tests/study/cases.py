"""Small studies, and what they leave."""

import csv
from pathlib import Path

from sb3_trl.study import Study

#: Every run takes a second or less.
SMALL = """\
tasks: [Pendulum-v1]
seeds: 2
n_timesteps: 512
eval_freq: 256
n_eval_episodes: 2
methods:
  TRPL, small steps:
    algo: trpl
    params:
      {n_envs: 2, n_steps: 32, batch_size: 32, n_epochs: 2, n_critic_epochs: 2, learning_rate: 1e-3, mean_bound: 0.001}
  PPO:
    algo: ppo
    conf_file: ppo_paper.yml
    params: {n_steps: 64, batch_size: 32, n_epochs: 2}
  FixPO:
    algo: fixpo
    params: {n_envs: 2, n_steps: 32, batch_size: 32, n_epochs: 2, learning_rate: 1e-2, kl_bound: 0.01}
"""


def table(path: Path, without: tuple[str, ...] = ("seconds",)) -> list[dict[str, str]]:
    """Return the rows of a study's results without some columns."""
    with (path / "results.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in without} for row in csv.DictReader(file)]


def modified(study: Study) -> dict[Path, int]:
    """Return when the files of finished runs were written."""
    return {path: path.stat().st_mtime_ns for run in study.finished for path in study.store.path(run).iterdir()}


def load(folder: Path, text: str = SMALL, out: str = "out") -> Study:
    (folder / "small.yml").write_text(text)
    return Study.load(folder / "small.yml", folder / out)


def is_of(row: dict[str, str], runs: list) -> bool:
    return any((run.variant, run.task, str(run.seed)) == (row["variant"], row["task"], row["seed"]) for run in runs)


ONE = """\
tasks: [Pendulum-v1]
seeds: 1
n_timesteps: 64
eval_freq: 64
n_eval_episodes: 1
methods:
  A:
    algo: trpl
    params: {n_envs: 1, n_steps: 64, batch_size: 32, n_epochs: 1, n_critic_epochs: 1}
  B:
    algo: fixpo
    params: {n_envs: 1, n_steps: 64, batch_size: 32, n_epochs: 1}
"""

LONG = """\
tasks: [Pendulum-v1, CartPole-v1]
seeds: 12
n_timesteps: 1000000
methods:
  TRPL: {algo: trpl, tasks: [Pendulum-v1]}
  full: {algo: trpl, tasks: [Pendulum-v1], params: {policy_kwargs: {covariance: full}}}
  PPO: {algo: ppo}
"""
