"""The RL Zoo's experiment with this package's YAML files, and with messages that say what to do."""

from __future__ import annotations

import argparse
import inspect
import io
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import optuna
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_trl.algorithms.masking import ActionMasking
from sb3_trl.envs import number_of_tasks
from sb3_trl.monitoring.evaluation import MaskableTaskEvalCallback, TaskEvalCallback
from sb3_trl.zoo.registry import SETTINGS_OF, algorithms, closest, hyperparameter_file, hyperparameter_files

__all__ = ["Experiment", "find_configuration", "hyperparameters_of", "read_settings"]

#: Keys of a YAML file that the RL Zoo uses itself; every other key goes to the algorithm's constructor.
ZOO_KEYS = (
    "callback",
    "env_kwargs",
    "env_wrapper",
    "frame_stack",
    "monitor_kwargs",
    "n_envs",
    "n_timesteps",
    "noise_std",
    "noise_type",
    "normalize",
    "vec_env_wrapper",
)


#: Entry of a YAML file for tasks with discrete actions that have none of their own.
DISCRETE_DEFAULT = "default_discrete"


#: Parts of the entry points of games where an agent draws its actions when it is evaluated or filmed, as in Atari's:
#: whoever always takes the likeliest turns in front of a wall for ever. The first is ``rl_zoo3``'s.
_ACTIONS_ARE_DRAWN = ("minigrid", "sb3_trl.envs.doom")


def draws_actions(env_id: str) -> bool:
    """Return whether an agent draws its actions when it is evaluated on a task that is none of Atari's."""
    entry_point = ExperimentManager.entry_point(env_id)
    return any(part in entry_point for part in _ACTIONS_ARE_DRAWN)


class Experiment(ExperimentManager):
    """``rl_zoo3``'s ``ExperimentManager``; ``--conf-file`` finds the package's YAML files too."""

    #: All that ``rl_zoo3`` wants to know by this is whether evaluations draw actions.
    is_minigrid = staticmethod(draws_actions)

    def __init__(self, args: argparse.Namespace, algo: str, *others: Any, config: str | None = None, **kwargs: Any):
        kwargs["config"] = find_configuration(config, algo)
        super().__init__(args, algo, *others, **kwargs)
        given = inspect.signature(ExperimentManager.__init__).bind(self, args, algo, *others, **kwargs).arguments
        self._has_own_eval_episodes = "n_eval_episodes" in given and not _is_default("--eval-episodes", args)
        if kwargs["config"] is None and algo in SETTINGS_OF:
            self.config = str(Path(self.config).with_name(f"{SETTINGS_OF[algo]}.yml"))

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the YAML file's entry for the environment, and check that it is one."""
        _check_file(self.config)
        if self.trial_id is not None:
            self.custom_hyperparams = self._trial() | (self.custom_hyperparams or {})
        with self._default_of_its_kind():
            hyperparams, saved = super().read_hyperparameters()
        for key in ("policy", "n_timesteps"):
            if key not in hyperparams:
                raise ValueError(f"{self.config} has no {key!r} for {self.env_name.gym_id}.")
        if "env_kwargs" in hyperparams:
            # rl_zoo3 forgets the file's env_kwargs where it evaluates, films or uploads: environments would differ.
            if self._eval_env_kwargs_args is None:
                self.eval_env_kwargs = hyperparams["env_kwargs"]
            self.args.env_kwargs = hyperparams["env_kwargs"]
        if self._n_eval_tasks > 1 and not self._has_own_eval_episodes:
            self.n_eval_episodes = self._n_eval_tasks
        return _numbers(hyperparams), type(saved)(_numbers(saved))

    @contextmanager
    def _default_of_its_kind(self) -> Iterator[None]:
        """Let a task without an entry find that of its kind in the place of ``default``."""
        config, task = self.config, self.env_name.gym_id
        content = yaml.safe_load(Path(config).read_text()) if Path(config).suffix in (".yml", ".yaml") else {}
        entry = None if task in content or self._is_atari else _entry_of_its_kind(content, task)
        if entry is None:
            yield
            return
        with TemporaryDirectory() as folder:
            self.config = str(Path(folder, Path(config).name))
            Path(self.config).write_text(yaml.safe_dump({"default": entry}))
            try:
                yield
            finally:
                self.config = config

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        processed = super()._preprocess_hyperparams(hyperparams)
        _check_arguments(processed[0], self.algo, self.config)
        return processed

    @property
    def _n_eval_tasks(self) -> int:
        return number_of_tasks(self.env_name.gym_id, self.eval_env_kwargs)

    def create_callbacks(self) -> None:
        """Make the callbacks of a training; evaluations take masks where training does, and tell many tasks apart."""
        super().create_callbacks()
        takes_masks = issubclass(ALGOS[self.algo], ActionMasking)
        has_tasks = self._n_eval_tasks > 1
        self.callbacks = [_evaluation_like(callback, takes_masks, has_tasks) for callback in self.callbacks]

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """Make environments; those of an id with many tasks have every task equally often, in evaluations once."""
        if eval_env:
            return super().create_envs(self.evaluation_envs(), eval_env, no_log)
        n_tasks = number_of_tasks(self.env_name.gym_id, self.env_kwargs)
        if n_envs % n_tasks:
            raise ValueError(
                f"n_envs={n_envs}: {self.env_name.gym_id} has {n_tasks} tasks, and each needs as many environments as "
                f"any other. Let n_envs be a multiple of {n_tasks}."
            )
        return super().create_envs(n_envs, eval_env, no_log)

    def evaluation_envs(self) -> int:
        """Return how many environments an evaluation has.

        :raises ValueError: if its episodes cannot be shared out equally among the tasks of an id that has many.
        """
        n_tasks = self._n_eval_tasks
        if self.n_eval_episodes % n_tasks:
            raise ValueError(
                f"An evaluation of {self.n_eval_episodes} episodes cannot play {n_tasks} tasks equally often: "
                f"--eval-episodes (in a study n_eval_episodes) must be a multiple of {n_tasks}."
            )
        return n_tasks if n_tasks > 1 else self.n_eval_envs

    def _trial(self) -> dict[str, Any]:
        """Return the hyperparameters of ``--trial-id``, which may be 0 (rl_zoo3 takes that for none)."""
        if not (self.storage and self.study_name):
            raise ValueError(f"--trial-id {self.trial_id} needs --storage and --study-name, where the trial is kept.")
        try:
            return self.load_trial(self.storage, self.study_name, self.trial_id)
        except (KeyError, IndexError) as error:
            where = f"{self.study_name!r} in {self.storage}"
            raise ValueError(f"--trial-id {self.trial_id}: there is no such trial of a study {where}.") from error

    def objective(self, trial: optuna.Trial) -> float:
        """Train with the trial's hyperparameters; those under which training diverges are pruned."""
        try:
            return super().objective(trial)
        except FloatingPointError as error:
            raise optuna.TrialPruned(str(error)) from error

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """Save the model, and say how an interrupted training goes on."""
        super().save_trained_model(model)
        steps_left = self.n_timesteps - model.num_timesteps
        if steps_left > 0:
            print(
                f"Training ended after {model.num_timesteps} of {self.n_timesteps} steps. To go on:\n"
                f"  {sys.argv[0]} {shlex.join(sys.argv[1:])} -i {self.save_path}/{self.env_name}.zip -n {steps_left}"
            )


def _entry_of_its_kind(content: dict[str, Any], task: str) -> dict[str, Any] | None:
    """Return the entry of a pattern that an id matches, else that of discrete actions if it has them, else None."""
    for pattern in content:
        if "*" in pattern and fnmatchcase(task, pattern):
            return content[pattern]
    return content[DISCRETE_DEFAULT] if DISCRETE_DEFAULT in content and _is_discrete(task) else None


def _is_default(flag: str, args: argparse.Namespace) -> bool:
    """Return whether a value is a flag's default: the command line has not the flag, nor an abbreviation of it."""
    comes_from_a_command = hasattr(args, flag.removeprefix("--").replace("-", "_"))
    given = (argument.partition("=")[0] for argument in sys.argv)
    return comes_from_a_command and not any(len(name) > 2 and flag.startswith(name) for name in given)


def _evaluation_like(callback: BaseCallback, takes_masks: bool, has_tasks: bool) -> BaseCallback:
    """Return the callback that evaluates as another does, with masks, if its environments have them, and by task."""
    if type(callback) is not EvalCallback:
        return callback
    if takes_masks and is_masking_supported(callback.eval_env):
        cls: type[EvalCallback] = MaskableTaskEvalCallback if has_tasks else MaskableEvalCallback
    elif has_tasks:
        cls = TaskEvalCallback
    else:
        return callback
    return cls(
        callback.eval_env,
        callback_on_new_best=callback.callback_on_new_best,
        n_eval_episodes=callback.n_eval_episodes,
        eval_freq=callback.eval_freq,
        log_path=str(Path(callback.log_path).parent) if callback.log_path else None,
        best_model_save_path=callback.best_model_save_path,
        deterministic=callback.deterministic,
    )


def read_settings(algo: str, task: str, config: str | None, params: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a YAML file's entry for a task, as the file has it, with changes; nothing is printed.

    :param algo: The algorithm's RL Zoo key.
    :param task: Id of the environment.
    :param config: Argument of ``--conf-file``, ``None`` for the algorithm's own.
    :param params: Replace the entry's.
    :raises ValueError: for a file or an entry that cannot be read.
    """
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        experiment = Experiment(argparse.Namespace(), algo, task, folder, hyperparams=params, config=config)
        return dict(experiment.read_hyperparameters()[1])


def find_configuration(name: str | None, algo: str) -> str | None:
    """Return the configuration that ``--conf-file name`` means, ``None`` for the RL Zoo's own.

    A file of that name on disk comes first, then one that comes with the package; any other name without a
    suffix is a Python module for the RL Zoo to import.

    :param name: Argument of ``--conf-file``; ``None`` if there was none.
    :param algo: The algorithm's RL Zoo key.
    :raises ValueError: if there is no such file.
    """
    if name is None:
        bundled = hyperparameter_file(algo) if algo in algorithms() else None
        return str(bundled) if bundled else None
    if Path(name).is_file():
        return name
    bundled = hyperparameter_file(name)
    if bundled:
        return str(bundled)
    if Path(name).suffix in (".yml", ".yaml", ".py") or "/" in name:
        known = ", ".join(hyperparameter_files())
        raise ValueError(f"--conf-file {name}: there is no such file, and the package has only {known}.")
    return name


def _check_file(config: str) -> None:
    """Raise a ``ValueError`` if a YAML file is not one, or maps no environments to hyperparameters."""
    if Path(config).suffix not in (".yml", ".yaml"):
        return
    try:
        content = yaml.safe_load(Path(config).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise ValueError(
            f"{config} must map environment ids, or 'default', to hyperparameters:\n"
            "  HalfCheetah-v5:\n    policy: MlpPolicy\n    n_timesteps: 1000000"
        )


def _is_discrete(task: str) -> bool:
    env = gym.make(task)
    env.close()
    return not isinstance(env.action_space, gym.spaces.Box)


def _numbers(hyperparams: dict[str, Any]) -> dict[str, Any]:
    """Turn strings like ``"5e-5"`` into numbers: YAML 1.1 takes them for one only with a dot, 5.0e-5."""

    def number(value: Any) -> Any:
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value

    return {key: number(value) for key, value in hyperparams.items()}


def hyperparameters_of(algo: str) -> set[str] | None:
    """Return the keys that a YAML file's entry for the algorithm may have, ``None`` if its constructor takes any."""
    parameters = inspect.signature(ALGOS[algo]).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return {*parameters, *ZOO_KEYS}


def _check_arguments(arguments: dict[str, Any], algo: str, config: str) -> None:
    """Raise a ``ValueError`` for the hyperparameters that the algorithm's constructor does not take."""
    known = hyperparameters_of(algo)
    if known is None:
        return
    unknown = [f"{key!r}{closest(key, known)}" for key in arguments if key not in known]
    if unknown:
        raise ValueError(f"{algo} has no hyperparameter {'; no '.join(unknown)} (in {config} or after -params)")
