"""What SB3's loggers get from the algorithms: the keys, the files, and when."""

import csv
import json
from functools import cache

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import CSVOutputFormat, KVWriter, Logger, configure
from stable_baselines3.common.vec_env import VecMonitor
from support import ALGORITHMS, FixPO, LeanPPO, PointEnv, event_file, small, vec_env

from sb3_trl import LeanTRPO

every_algorithm = pytest.mark.parametrize("cls", [*ALGORITHMS, LeanTRPO])

#: Keys that SB3's users read, whatever the algorithm.
COMMON = {
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "time/fps",
    "time/iterations",
    "time/time_elapsed",
    "time/total_timesteps",
    "train/learning_rate",
    "train/value_loss",
    "train/explained_variance",
    "train/n_updates",
    "train/std",
}
#: Those of PPO that have another name, or no meaning, elsewhere.
OF_PPO = {"train/approx_kl", "train/clip_fraction", "train/clip_range", "train/entropy_loss", "train/loss"}


class Keeps(KVWriter):
    """Keeps everything that is dumped."""

    def __init__(self) -> None:
        self.dumps: list[tuple[int, dict, dict]] = []

    def write(self, key_values, key_excluded, step=0) -> None:
        self.dumps.append((step, dict(key_values), dict(key_excluded)))

    def close(self) -> None:
        pass


class SuccessEnv(PointEnv):
    """Says at the end of an episode whether it was a success."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, info | ({"is_success": True} if truncated else {})


def dumps(cls: type, timesteps: int = 48, env=None, log_interval: int | None = 1, **kwargs) -> list:
    """Return what a training dumped."""
    output = Keeps()
    model = small(cls, VecMonitor(vec_env(2, length=5)) if env is None else env, **kwargs)
    model.set_logger(Logger(None, [output]))
    model.learn(timesteps, log_interval=log_interval)
    return output.dumps


@every_algorithm
def test_keys(cls):
    """Rollouts' and times' are PPO's; ``train/n_updates``, times and iterations stay out of the same outputs."""
    (_, first, _), (step, second, excluded), _ = dumps(cls)
    (_, first_of_ppo, _), (step_of_ppo, second_of_ppo, excluded_of_ppo), _ = dumps(PPO)
    assert step == step_of_ppo == 32
    assert first.keys() == first_of_ppo.keys()
    assert second.keys() & second_of_ppo.keys() >= COMMON
    assert {key for key in second if key.startswith(("rollout/", "time/"))} == {
        key for key in second_of_ppo if key.startswith(("rollout/", "time/"))
    }
    if issubclass(cls, PPO):
        assert second.keys() == second_of_ppo.keys()
    else:
        missing = {key for key in second_of_ppo.keys() - second.keys() if key.startswith("train/")}
        assert missing <= OF_PPO | {"train/policy_gradient_loss"}
    common = excluded.keys() & excluded_of_ppo.keys()
    assert {key: excluded[key] for key in common} == {key: excluded_of_ppo[key] for key in common}
    assert all(isinstance(value, (int, float, np.number)) for value in second.values())
    assert second["train/n_updates"] == second_of_ppo["train/n_updates"] == 1
    assert second["time/iterations"] == 2


@every_algorithm
def test_statistics_of_episodes(cls):
    """Means over the last ``stats_window_size`` episodes, and of successes where environments tell."""
    env = VecMonitor(vec_env(2, SuccessEnv, length=4), info_keywords=("is_success",))
    dumped = dumps(cls, env=env, stats_window_size=3)
    assert [values["rollout/ep_len_mean"] for _, values, _ in dumped] == [4, 4, 4]
    assert [values["rollout/success_rate"] for _, values, _ in dumped] == [1, 1, 1]
    model = small(cls, VecMonitor(vec_env(2, length=4)), stats_window_size=3)
    model.learn(48)
    assert len(model.ep_info_buffer) == model.ep_info_buffer.maxlen == 3
    assert model.logger.name_to_value.get("rollout/success_rate") is None


@cache
def steps_of_dumps(cls: type, log_interval: int | None) -> list[int]:
    return [step for step, *_ in dumps(cls, 64, log_interval=log_interval)]


@every_algorithm
@pytest.mark.parametrize("log_interval", [1, 3, 5, None])
def test_log_interval(cls, log_interval):
    """Dumps come when PPO's come; the last update is never dumped, as with PPO."""
    steps = steps_of_dumps(cls, log_interval)
    assert steps == steps_of_dumps(PPO, log_interval)
    assert len(steps) == (4 // log_interval if log_interval else 0)


@every_algorithm
def test_every_output_format(cls, tmp_path, capsys):
    model = small(cls, VecMonitor(vec_env(2, length=5)))
    model.set_logger(configure(str(tmp_path), ["stdout", "csv", "json", "log", "tensorboard"]))
    model.learn(48)
    with open(tmp_path / "progress.csv") as file:
        table = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    for rows in (table, lines):
        assert [int(row["time/total_timesteps"]) for row in rows] == [16, 32, 48]
        assert rows[-1].keys() >= COMMON
        assert [row.get("train/value_loss") not in ("", None) for row in rows] == [False, True, True]
    assert "| train/" in (tmp_path / "log.txt").read_text()
    printed = capsys.readouterr().out
    assert all(key.split("/")[1][:15] in printed for key in COMMON)
    scalars = event_file(tmp_path).Tags()["scalars"]
    hidden = {"time/iterations", "time/time_elapsed", "time/total_timesteps", "train/n_updates"}
    assert COMMON - hidden <= {*scalars}
    assert not hidden & {*scalars}


@every_algorithm
def test_a_logger_of_ones_own_is_kept(cls, tmp_path, capsys):
    """Also in later trainings; and then ``verbose`` and ``tensorboard_log`` do not count, as SB3 says."""
    model = small(cls, vec_env(2), tensorboard_log=str(tmp_path / "board"), verbose=0)
    logger = Logger(str(tmp_path), [CSVOutputFormat(str(tmp_path / "progress.csv"))])
    model.set_logger(logger)
    for _ in range(2):
        model.learn(16, reset_num_timesteps=False)
        assert model.logger is logger
    assert not (tmp_path / "board").exists()
    assert not capsys.readouterr().out


@every_algorithm
def test_verbosity(cls, capsys):
    """0 says nothing; 1 says what PPO says: the device, the wrappers, and a table."""
    env = gym.make("Pendulum-v1", max_episode_steps=5)
    small(cls, env, verbose=0).learn(8)
    assert capsys.readouterr().out == ""
    printed = []
    for each in (cls, PPO):
        small(each, gym.make("Pendulum-v1", max_episode_steps=5), verbose=1).learn(8)
        printed.append([line for line in capsys.readouterr().out.splitlines() if "|" not in line and "--" not in line])
    assert printed[0] == printed[1]


@every_algorithm
def test_keys_that_callbacks_record(cls):
    """A callback's values are dumped with the algorithm's, at its own time."""

    class Records(BaseCallback):
        def _on_step(self) -> bool:
            self.logger.record_mean("mine/mean", self.num_timesteps)
            return True

        def _on_rollout_end(self) -> None:
            self.logger.record("mine/last", self.num_timesteps, exclude="stdout")

    found = []
    for each in (cls, PPO):
        model, output = small(each, vec_env(2)), Keeps()
        model.set_logger(Logger(None, [output]))
        model.learn(32, callback=Records())
        found.append([{key: values[key] for key in ("mine/mean", "mine/last")} for _, values, _ in output.dumps])
    assert found[0] == found[1] == [{"mine/mean": 9, "mine/last": 16}, {"mine/mean": 25, "mine/last": 32}]


@pytest.mark.parametrize("cls", [FixPO, LeanPPO, LeanTRPO])
def test_keys_without_a_standard_deviation(cls):
    """Discrete actions have none."""

    class Choice(PointEnv):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Discrete(2)

        def step(self, action):
            self.steps += 1
            return self._observe(), 0.0, False, self.steps >= self.length, {}

    (_, _, _), (_, values, _), _ = dumps(cls, env=vec_env(2, Choice))
    assert "train/std" not in values
    assert "train/value_loss" in values
