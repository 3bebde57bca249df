"""Search for a task's hyperparameters: Optuna proposes, a batch of seeds trains side by side, their mean return counts.

The search space is a YAML file (``benchmarks/tuning/``). Trials are kept in a file: the command can be interrupted and
repeated, and several of them can work on the same search.

    python benchmarks/tune.py benchmarks/tuning/trpl.yml --env Hopper-v5 --n-trials 30 --storage tuning.log
    python benchmarks/tune.py benchmarks/tuning/trpl.yml --env Hopper-v5 --storage tuning.log --show

The seeds of the search (100, 101, …) are not those that results are reported for (0, 1, …).
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from sb3_trl.study.jobs import Job, Run
from sb3_trl.study.run import train
from sb3_trl.zoo.experiment import read_settings
from sb3_trl.zoo.registry import register


class Search:
    """What a file in ``benchmarks/tuning`` says.

    ``algo``, ``conf_file``, ``eval_freq`` and ``n_eval_episodes`` as in a study (by default five episodes every 51 200
    steps); ``params`` are fixed; ``space`` maps names to a list of choices,
    ``{log: [low, high]}`` or ``{linear: [low, high]}``; ``start`` lists what is tried first; ``network`` maps the
    choices of that name to policy_kwargs.
    """

    def __init__(self, path: Path, env: str, n_timesteps: int | None, n_seeds: int) -> None:
        content = yaml.safe_load(path.read_text())
        self.algo, self.conf_file = content["algo"], content["conf_file"]
        self.fixed, self.space, self.start = content["params"], content["space"], content["start"]
        self.network = content.get("network", {})
        self.evaluation = content.get("eval_freq", 51_200), content.get("n_eval_episodes", 5)
        self.n_timesteps = n_timesteps or content["n_timesteps"]
        self.seeds = [100 + k for k in range(n_seeds)]
        self.env = env

    def draw(self, trial: optuna.Trial) -> dict[str, Any]:
        """Return hyperparameters drawn from the space."""
        drawn = {}
        for name, spec in self.space.items():
            if isinstance(spec, list):
                drawn[name] = trial.suggest_categorical(name, spec)
            else:
                ((kind, (low, high)),) = spec.items()
                drawn[name] = trial.suggest_float(name, low, high, log=kind == "log")
        return drawn

    def hyperparameters(self, drawn: dict[str, Any]) -> dict[str, Any]:
        """Return the entry of the hyperparameter file with these changes."""
        params = self.fixed | drawn
        if self.network:
            params["policy_kwargs"] = self.network[params.pop("network")].replace("STD", str(params.pop("init_std")))
        if "n_envs" in params and "rollout" in params:
            params["n_steps"] = params.pop("rollout") // params["n_envs"]
        settings = read_settings(self.algo, self.env, self.conf_file, params)
        return settings | {"n_timesteps": self.n_timesteps}

    def objective(self, trial: optuna.Trial) -> float:
        """Train all seeds, and return the mean of their last five evaluations."""
        settings = self.hyperparameters(self.draw(trial))
        runs = [Run(self.algo, "", self.env, seed, self.n_timesteps, *self.evaluation, settings) for seed in self.seeds]
        finals = []
        for outcome in train(Job(tuple(runs), is_batch=True)):
            if outcome.error is not None:
                raise optuna.TrialPruned(outcome.error.splitlines()[-1])
            rows = pd.read_csv(io.BytesIO(outcome.files["rows.csv"]))
            finals.append(float(rows.eval_return.tail(5).mean()))
        trial.set_user_attr("seeds", finals)
        return sum(finals) / len(finals)


def main() -> None:
    """Search, or show what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--env", required=True)
    parser.add_argument("--n-trials", type=int, default=20)
    parser.add_argument("--n-timesteps", type=int)
    parser.add_argument("--n-seeds", type=int, default=3)
    parser.add_argument("--storage", type=Path, default=Path("tuning.log"))
    parser.add_argument("--show", action="store_true", help="print the trials so far, best first")
    args = parser.parse_args()
    register()
    search = Search(args.file, args.env, args.n_timesteps, args.n_seeds)
    name = f"{args.file.stem} on {args.env}, {search.n_timesteps} steps"
    sampler = optuna.samplers.TPESampler(n_startup_trials=8, multivariate=True, constant_liar=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(args.storage))),
        study_name=name,
        direction="maximize",
        sampler=sampler,
        load_if_exists=True,
    )
    if args.show:
        for trial in sorted(study.get_trials(states=[optuna.trial.TrialState.COMPLETE]), key=lambda t: -t.value):
            seeds = ", ".join(f"{x:.0f}" for x in trial.user_attrs["seeds"])
            print(f"{trial.value:8.0f}  ({seeds})  {json.dumps(trial.params)}")
        return
    for settings in search.start:
        study.enqueue_trial(settings, skip_if_exists=True)
    study.optimize(search.objective, n_trials=args.n_trials)


if __name__ == "__main__":
    main()
