"""ViZDoom's scenarios: as they are published, in small pictures, and gone when they are closed."""

import gc
import pickle
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as check_env_of_gymnasium
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv

pytest.importorskip("cv2", reason='pip install "sb3-trl[pixels]"')
pytest.importorskip("vizdoom", reason='pip install "sb3-trl[pixels]"')

from sb3_trl.envs import VizdoomEnv

#: Number of buttons by scenario.
BUTTONS = {"Basic": 3, "HealthGathering": 3, "HealthGatheringSupreme": 3, "MyWayHome": 5, "TakeCover": 2}
every_scenario = pytest.mark.parametrize("scenario", BUTTONS)


@pytest.fixture
def make():
    """Make environments that are closed when the test ends."""
    made = []

    def call(scenario: str, **kwargs) -> gym.Env:
        made.append(gym.make(f"sb3_trl/Vizdoom{scenario}-v0", **kwargs))
        return made[-1]

    yield call
    for env in made:
        env.close()


def episode(env: gym.Env, seed: int | None = 0, n_steps: int = 40, idle: bool = False) -> list[tuple]:
    """Play with actions that depend on the step alone."""
    steps = [(env.reset(seed=seed)[0], 0.0, False, False, {})]
    while len(steps) <= n_steps and not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(0 if idle else len(steps) // 3 % env.action_space.n))
    return steps


def pictures(steps: list[tuple]) -> np.ndarray:
    return np.array([step[0] for step in steps])


def games() -> int:
    """Number of ViZDoom's processes that this one has."""
    children = [
        child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()
    ]
    states = [Path(f"/proc/{child}/stat").read_text().split() for child in children]
    return sum("vizdoom" in name and state != "Z" for _, name, state, *_ in states)


# --- the interface ---


@every_scenario
def test_the_checkers_find_nothing_and_ppo_runs(scenario, make):
    env = make(scenario, render_mode="rgb_array")
    assert env.action_space == spaces.Discrete(1 + BUTTONS[scenario])
    assert env.observation_space == spaces.Box(0, 255, (36, 64, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
        check_env_of_gymnasium(env.unwrapped, skip_render_check=True)
    assert (env.render().shape, env.render().dtype) == ((120, 160, 3), np.uint8)
    PPO("CnnPolicy", env, n_steps=64, batch_size=32, n_epochs=1, device="cpu").learn(64)


def test_other_sizes_and_game_variables(make):
    env = make("HealthGathering", size=[84, 84], variables=True)
    steps = episode(env, n_steps=20)
    observation = steps[0][0]
    assert observation["screen"].shape == (84, 84, 3)
    assert env.observation_space.contains(observation)
    health = [float(step[0]["variables"][0]) for step in steps]
    assert 100 >= health[0] > health[-1] > 0, "the floor is acid"
    PPO("MultiInputPolicy", env, n_steps=64, batch_size=32, n_epochs=1, device="cpu").learn(64)


def test_errors_say_what_can_be_given():
    with pytest.raises(ValueError, match=r"scenario='heaven' is unknown: choose one of basic, .*take_cover\."):
        VizdoomEnv("heaven")
    with pytest.raises(ValueError, match="the scenario 'my_way_home' has no game variables"):
        VizdoomEnv("my_way_home", variables=True)
    with pytest.raises(ValueError, match="frame_skip=0: a step takes one tic or more"):
        VizdoomEnv("basic", frame_skip=0)
    with pytest.raises(ValueError, match="render_mode='ansi' is unknown"):
        VizdoomEnv("basic", render_mode="ansi")


# --- time ---


@pytest.mark.parametrize(("frame_skip", "n_steps"), [(4, 75), (7, 43)])
def test_the_time_limit_is_counted_in_tics_and_truncates(frame_skip, n_steps, make):
    """300 tics, each of which costs 1, however many of them are a step."""
    steps = episode(make("Basic", frame_skip=frame_skip), n_steps=1000, idle=True)
    assert len(steps) - 1 == n_steps
    assert sum(step[1] for step in steps) == -300
    assert [step[2:4] for step in steps] == [(False, False)] * n_steps + [(False, True)]


def test_the_last_picture_before_the_limit_is_of_the_running_game(make):
    """Its value is estimated: SB3 adds it to the last reward."""
    env = DummyVecEnv([lambda: make("Basic")])
    last = env.reset()
    while True:
        before, (last, _, dones, infos) = last, env.step(np.array([1]))
        if dones[0]:
            break
    assert infos[0]["TimeLimit.truncated"]
    end = infos[0]["terminal_observation"].astype(int)
    assert end.std() > 10
    assert np.abs(end - before[0]).mean() < 5, "the player stands at a wall"


def test_a_step_holds_its_button_and_adds_up_the_rewards(make):
    env, tic = make("HealthGathering"), make("HealthGathering", frame_skip=1)
    np.testing.assert_array_equal(env.reset(seed=2)[0], tic.reset(seed=2)[0])
    for action in (3, 1, 0, 2, 3):
        singles = [tic.step(action) for _ in range(4)]
        observation, reward, *_ = env.step(action)
        np.testing.assert_array_equal(observation, singles[-1][0])
        assert reward == sum(single[1] for single in singles) == 4
    assert (env.metadata["render_fps"], tic.metadata["render_fps"]) == (35 / 4, 35)


def test_death_ends_the_episode(make):
    steps = episode(make("HealthGathering"), n_steps=1000, idle=True)
    assert steps[-1][2:4] == (True, False)
    assert sum(step[1] for step in steps) == 4 * (len(steps) - 2) + steps[-1][1]
    assert -100 < steps[-1][1] <= -96, "100 for dying, 1 for each tic of the last step that was lived"
    np.testing.assert_array_equal(steps[-1][0], steps[-2][0])


# --- seeds ---


@every_scenario
def test_seeds_repeat_whatever_was_played_before(scenario, make):
    env, other = make(scenario), make(scenario)
    episode(other, 8, n_steps=15)
    mine, its = episode(env, 3), episode(other, 3)
    np.testing.assert_array_equal(pictures(mine), pictures(its))
    assert [step[1:4] for step in mine] == [step[1:4] for step in its]
    first, second = episode(env, None), episode(env, None)
    np.testing.assert_array_equal(pictures(first), pictures(episode(other, None)))
    length = min(len(first), len(second))
    assert not np.array_equal(pictures(first)[:length], pictures(second)[:length]), "no two episodes are alike"


def test_several_at_a_time_do_not_disturb_each_other(make):
    alone = pictures(episode(make("TakeCover"), 1, n_steps=20))
    first, second = make("TakeCover"), make("TakeCover")
    seen = [first.reset(seed=1)[0]]
    second.reset(seed=2)
    for step in range(1, len(alone)):
        seen.append(first.step(step // 3 % 3)[0])
        second.step(1)
    np.testing.assert_array_equal(seen, alone)


def test_copies_play_the_same(make):
    env = make("MyWayHome", frame_skip=2, size=(40, 50)).unwrapped
    twin = pickle.loads(pickle.dumps(env))
    try:
        np.testing.assert_array_equal(pictures(episode(env, 1)), pictures(episode(twin, 1)))
    finally:
        twin.close()


# --- what it leaves ---


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no list of processes")
def test_no_game_is_left_running():
    gc.collect()
    before = games()
    envs = [VizdoomEnv("basic") for _ in range(2)]
    assert games() == before, "it starts with the first episode"
    for env in envs:
        env.reset(seed=0)
    assert games() == before + 2
    envs[0].close()
    assert games() == before + 1
    envs[0].close()
    assert envs[0].reset(seed=0)[0].any(), "an environment can be used again"
    del env, envs
    gc.collect()
    assert games() == before


def test_the_game_ends_with_python():
    """Without a word, though nobody closed it."""
    code = "import sb3_trl.envs, gymnasium as gym\nenv = gym.make('sb3_trl/VizdoomBasic-v0')\nenv.reset()\nenv.step(0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")


def test_nothing_is_left_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = VizdoomEnv("basic")
    env.reset(seed=0)
    env.close()
    assert not list(tmp_path.iterdir())
    (tmp_path / "_vizdoom").mkdir()
    env.reset(seed=0)
    env.close()
    assert [path.name for path in tmp_path.iterdir()] == ["_vizdoom"], "what was there stays"


def test_games_start_side_by_side_in_one_folder(tmp_path, monkeypatch):
    """Each wants a folder of one name there: it finds it, and nobody takes it away while it starts."""
    monkeypatch.chdir(tmp_path)
    found = []

    class Game:
        def is_running(self):
            return False

        def init(self):
            found.append(Path("_vizdoom").is_dir())
            time.sleep(0.01)
            found.append(Path("_vizdoom").is_dir())
            raise InterruptedError

    def start():
        env = VizdoomEnv("basic")
        env._game = Game()
        with suppress(InterruptedError):
            env.reset(seed=0)

    starts = [threading.Thread(target=start) for _ in range(8)]
    for thread in starts:
        thread.start()
    for thread in starts:
        thread.join()
    assert found == 16 * [True]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    """An error of Python instead of its crash."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "_vizdoom").write_text("")
    with pytest.raises(OSError, match="_vizdoom"):
        VizdoomEnv("basic").reset(seed=0)
