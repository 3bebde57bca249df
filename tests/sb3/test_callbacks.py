"""SB3's callbacks do with the algorithms of this package what they do with its PPO."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.vec_env import VecNormalize
from support import ACTION_SPACES, ALGORITHMS, ActionEnv, FixPO, PointEnv, small, vec_env

from sb3_trl import LeanTRPO

every_algorithm = pytest.mark.parametrize("cls", [*ALGORITHMS, LeanTRPO])

#: What ``locals`` lack while the rollout is collected: what is not known yet, and what SB3's loop leaves behind.
NOT_KNOWN_YET = {"obs_tensor", "values", "log_probs", "idx", "done", "terminal_obs", "terminal_value"}


class Trace(BaseCallback):
    """Keeps what happened when, and what it found among the locals."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple] = []
        self.locals_of: dict[str, dict] = {}

    def _keep(self, event: str) -> None:
        self.events.append((event, self.num_timesteps, self.n_calls))
        self.locals_of[event] = {key: (type(x), getattr(x, "shape", None)) for key, x in self.locals.items()}

    def _on_training_start(self) -> None:
        self._keep("training_start")

    def _on_rollout_start(self) -> None:
        self._keep("rollout_start")

    def _on_step(self) -> bool:
        self._keep("step")
        return True

    def _on_rollout_end(self) -> None:
        self._keep("rollout_end")

    def _on_training_end(self) -> None:
        self._keep("training_end")


class StopAt(BaseCallback):
    """Returns ``False`` once so many steps were taken."""

    def __init__(self, n_calls: int) -> None:
        super().__init__()
        self.last = n_calls

    def _on_step(self) -> bool:
        return self.n_calls < self.last


class CountingEnv(PointEnv):
    """Counts the steps of all of them."""

    n_steps_in_all = 0

    def step(self, action):
        CountingEnv.n_steps_in_all += 1
        return super().step(action)


STOPS = {
    "callback": StopAt,
    "list": lambda n: [Trace(), StopAt(n), Trace()],
    "function": lambda n: lambda locals_, globals_: locals_["self"].num_timesteps < 2 * n,
    "event": lambda n: EveryNTimesteps(1, StopAt(n)),
}


@cache
def stopped(cls: type, kind: str, n: int) -> tuple[int, int, int]:
    """Return how many timesteps and steps there were, and how many of the last rollout are in the buffer."""
    CountingEnv.n_steps_in_all = 0
    model = small(cls, vec_env(2, CountingEnv))
    model.learn(64, callback=STOPS[kind](n))
    return model.num_timesteps, CountingEnv.n_steps_in_all, model.rollout_buffer.pos


@every_algorithm
@pytest.mark.parametrize("n", [1, 8, 9])
@pytest.mark.parametrize("kind", STOPS)
def test_false_stops_exactly_there(cls, kind, n):
    assert stopped(cls, kind, n) == stopped(PPO, kind, n) == (2 * n, 2 * n, (n - 1) % 8)


@every_algorithm
def test_training_goes_on_after_a_callback_stopped_it(cls):
    model, trace = small(cls, vec_env(2)), Trace()
    model.learn(64, callback=StopAt(3))
    model.learn(16, callback=trace, reset_num_timesteps=False)
    assert model.num_timesteps == 22
    assert trace.events[1:3] == [("rollout_start", 6, 0), ("step", 8, 1)]


@every_algorithm
def test_events_come_when_they_come_with_ppo(cls):
    """And the locals hold what SB3's hold, except what is not known yet."""
    traces = []
    for each in (cls, PPO):
        outer, inner, rare = Trace(), Trace(), Trace()
        model = small(each, vec_env(2, length=5))
        model.learn(40, callback=[outer, CallbackList([inner]), EveryNTimesteps(10, rare)])
        traces.append((outer.events, inner.events, rare.events, outer.locals_of))
    *events, locals_of = traces[0]
    *expected_events, expected_locals = traces[1]
    assert events == expected_events
    for event, expected in expected_locals.items():
        common = expected.keys() - NOT_KNOWN_YET - {"self"}
        assert common <= locals_of[event].keys()
        assert {key: locals_of[event][key] for key in common} == {key: expected[key] for key in common}
        assert locals_of[event]["self"] == (cls, None)


@pytest.mark.parametrize("cls", [FixPO, LeanTRPO])
@pytest.mark.parametrize("space", ["box", "discrete"])
def test_locals_at_the_end_of_a_rollout(cls, space):
    found = []
    for each in (cls, PPO):
        trace = Trace()
        small(each, vec_env(2, ActionEnv, action_space=ACTION_SPACES[space])).learn(16, callback=trace)
        found.append({key: trace.locals_of["rollout_end"].get(key) for key in ("actions", "clipped_actions", "values")})
    assert found[0] == found[1]


@every_algorithm
def test_checkpoints(cls, tmp_path):
    files = []
    for each in (cls, PPO):
        folder = tmp_path / each.__name__
        callback = CheckpointCallback(3, str(folder), name_prefix="model", save_vecnormalize=True)
        model = small(each, VecNormalize(vec_env(2)))
        model.learn(32, callback=callback)
        files.append(sorted(file.name for file in folder.iterdir()))
    assert files[0] == files[1]
    assert "model_vecnormalize_12_steps.pkl" in files[0]
    loaded = cls.load(tmp_path / cls.__name__ / "model_12_steps", env=model.env, device="cpu")
    assert (loaded.num_timesteps, loaded.n_envs) == (12, 2)
    loaded.learn(16, reset_num_timesteps=False)
    assert loaded.num_timesteps == 28


@every_algorithm
def test_evaluations(cls, tmp_path):
    """The best model is kept, children are asked, and what is written and logged is what SB3 writes and logs."""
    found = []
    for each in (cls, PPO):
        folder = tmp_path / each.__name__
        model, best, after = small(each, vec_env(2)), Trace(), Trace()
        callback = EvalCallback(
            vec_env(1),
            callback_on_new_best=best,
            callback_after_eval=after,
            n_eval_episodes=2,
            eval_freq=5,
            log_path=str(folder),
            best_model_save_path=str(folder),
            verbose=0,
        )
        model.learn(48, callback=callback)
        with np.load(folder / "evaluations.npz") as written:
            shapes = {key: written[key].shape for key in written}
            timesteps = written["timesteps"].tolist()
        kinds = [event for event, *_ in best.events]
        found.append((shapes, timesteps, after.events, sorted(file.name for file in folder.iterdir())))
        assert set(kinds) <= {"training_start", "step"}
        assert {key for key in model.logger.name_to_value if key.startswith("eval/")} <= {
            "eval/mean_reward",
            "eval/mean_ep_length",
        }
    assert found[0] == found[1]
    loaded = cls.load(tmp_path / cls.__name__ / "best_model", device="cpu")
    assert 0 < loaded.num_timesteps <= 48


@every_algorithm
def test_evaluations_stop_training(cls):
    stop_at_once = EvalCallback(
        vec_env(1), callback_on_new_best=StopTrainingOnRewardThreshold(-1e9), eval_freq=3, n_eval_episodes=1, verbose=0
    )
    model = small(cls, vec_env(2))
    model.learn(64, callback=stop_at_once)
    assert model.num_timesteps == 6

    class Worse(PointEnv):
        """Every episode is worse than the last."""

        total = 0.0

        def step(self, action):
            observation, _, *rest = super().step(action)
            Worse.total -= 1.0
            return observation, Worse.total, *rest

    no_improvement = StopTrainingOnNoModelImprovement(max_no_improvement_evals=1, min_evals=1)
    callback = EvalCallback(
        vec_env(1, Worse), callback_after_eval=no_improvement, eval_freq=3, n_eval_episodes=1, verbose=0
    )
    model.learn(64, callback=callback)
    assert model.num_timesteps == 18, "the third evaluation is the second without improvement"


@every_algorithm
def test_a_number_of_episodes_stops_training(cls):
    timesteps = []
    for each in (cls, PPO):
        model = small(each, vec_env(2, length=5))
        model.learn(64, callback=StopTrainingOnMaxEpisodes(max_episodes=2, verbose=0))
        timesteps.append(model.num_timesteps)
    assert timesteps[0] == timesteps[1] == 20


@every_algorithm
def test_progress_bar(cls, capsys):
    small(cls).learn(16, progress_bar=True, callback=[Trace()])
    small(cls).learn(16, progress_bar=True)
    small(cls).learn(16, progress_bar=True, callback=lambda *_: None)
    assert "16/16" in "".join(capsys.readouterr())


def test_checkpoints_can_be_taken_at_every_event(tmp_path):
    """Also in the middle of a rollout and of an episode."""

    class Saves(Trace):
        def _keep(self, event: str) -> None:
            super()._keep(event)
            self.model.save(tmp_path / event)

    for cls in ALGORITHMS:
        small(cls, vec_env(2)).learn(16, callback=Saves())
        for file in Path(tmp_path).glob("*.zip"):
            assert cls.load(file, env=vec_env(2), device="cpu").learn(16).num_timesteps == 16
