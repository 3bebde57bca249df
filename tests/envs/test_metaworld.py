"""Meta-World's tasks: their own physics and rewards, other goals, successes, and many of them side by side."""

import os
import pickle
import warnings
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_trl import TRPL
from sb3_trl.envs import number_of_tasks

pytest.importorskip("metaworld", reason='pip install "sb3-trl[metaworld]"')

from metaworld.env_dict import MT10_V3, MT50_V3
from metaworld.policies import ENV_POLICY_MAP

from sb3_trl.envs import MetaWorldEnv, MultiTaskEnv, metaworld_vec_env
from sb3_trl.envs.metaworld import task_names

SAMPLE = ["reach", "door-open", "peg-insert-side"]
GOAL = slice(36, 39)


@pytest.fixture(scope="module")
def reach():
    return MetaWorldEnv("reach")


def goals_of(env: gym.Env, n: int, seed: int | None = 0) -> list[tuple[float, ...]]:
    """Return the goals of some episodes, in their order."""
    seen = [env.reset(seed=seed)[0]] + [env.reset()[0] for _ in range(n - 1)]
    return [tuple(observation[GOAL].tolist()) for observation in seen]


def actions(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, 4)).astype(np.float32)


def play(env: gym.Env, steps: np.ndarray) -> list[tuple]:
    return [env.step(action) for action in steps]


# --- the tasks ---


def test_every_task_of_meta_world_has_an_id():
    assert task_names("MT10") == [name.removesuffix("-v3") for name in MT10_V3]
    assert task_names("MT50") == [name.removesuffix("-v3") for name in MT50_V3]
    ids = {f"sb3_trl/MetaWorld{name.title().replace('-', '')}-v0": name for name in task_names("MT50")}
    assert {"sb3_trl/MetaWorldReach-v0", "sb3_trl/MetaWorldButtonPressTopdownWall-v0"} < set(ids)
    for env_id, name in ids.items():
        spec = gym.spec(env_id)
        assert (spec.kwargs, spec.max_episode_steps) == ({"task": name}, 500)


@pytest.mark.parametrize("task", SAMPLE)
def test_it_is_meta_worlds_task(task):
    """The same goal and actions: the same observations and rewards, whatever was played before."""
    env, its = MetaWorldEnv(task), MT50_V3[f"{task}-v3"](reward_function_version="v2")
    env.reset(seed=7)
    play(env, actions(30, seed=1))
    observation, _ = env.reset()
    its._partially_observable = False
    its.__dict__.pop("sawyer_observation_space")
    its._set_task_called, its._last_rand_vec = True, env.sawyer._last_rand_vec
    np.testing.assert_array_equal(observation, its.reset()[0])
    for action in actions(30):
        mine, theirs = env.step(action), its.step(action)
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[1:4] == theirs[1:4]
        assert theirs[4].items() <= mine[4].items()
        assert mine[4]["task"] == task


@pytest.mark.parametrize("env_id", ["sb3_trl/MetaWorldDrawerClose-v0", "sb3_trl/MetaWorldMT10-v0"])
def test_the_checker_finds_nothing_and_ppo_runs(env_id):
    env = gym.make(env_id)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
    assert env.action_space == spaces.Box(-1.0, 1.0, (4,), np.float32)
    assert env.observation_space.shape == (39 if "MT" not in env_id else 49,)
    assert env.spec.make().observation_space == env.observation_space
    PPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, device="cpu").learn(64)


def test_a_hidden_goal_is_hidden(reach):
    hidden = MetaWorldEnv("reach", goal_observable=False)
    assert set(goals_of(hidden, 5)) == {(0.0, 0.0, 0.0)}
    goals_of(reach, 5)
    action = np.ones(4, np.float32)
    blind, seeing = hidden.step(action), reach.step(action)
    np.testing.assert_array_equal(blind[0], [*seeing[0][:36], 0, 0, 0])
    assert blind[1] == seeing[1], "the goal is the same"


def test_copies_play_the_same():
    env = MetaWorldEnv("reach-v3", n_goals=3, goal_seed=4)
    twin = pickle.loads(pickle.dumps(env))
    assert goals_of(env, 4) == goals_of(twin, 4)
    many = pickle.loads(pickle.dumps(MultiTaskEnv(["reach", "push"], goal_observable=False)))
    assert many.tasks == ["reach", "push"]
    assert goals_of(many, 1) == [(0.0, 0.0, 0.0)]


# --- goals ---


def test_fifty_goals_each_once_before_any_comes_again(reach):
    goals = goals_of(reach, 100)
    assert len({*goals}) == 50
    assert {*goals[:50]} == {*goals[50:]}
    assert goals[:50] != goals[50:], "in another order"
    few = MetaWorldEnv("reach", n_goals=2)
    assert all(one != other for one, other in pairwise(goals_of(few, 20)))


def test_the_seed_of_reset_orders_the_goals_and_goal_seed_draws_them():
    env, twin, other = (MetaWorldEnv("reach", n_goals=12, goal_seed=seed) for seed in (0, 0, 1))
    first = goals_of(env, 12, seed=1)
    assert goals_of(env, 12, seed=2) != first
    goals_of(env, 7)
    assert goals_of(env, 12, seed=1) == first
    assert {*goals_of(twin, 12, seed=2)} == {*first}
    assert not {*goals_of(other, 12, seed=1)} & {*first}


def test_goals_without_end():
    env = MetaWorldEnv("reach", n_goals=None)
    goals = goals_of(env, 15, seed=3)
    assert len({*goals}) == 15
    assert goals_of(env, 15, seed=3) == goals
    assert not {*goals_of(env, 15, seed=4)} & {*goals}


def test_numpys_random_numbers_are_left_alone(reach):
    before = np.random.get_state()[1].copy()  # noqa: NPY002  the generator that Meta-World draws from by itself
    goals_of(reach, 3)
    MetaWorldEnv("push").reset(seed=0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


# --- success, and the end of an episode ---


def test_an_episode_is_a_success_if_any_step_is(reach):
    """Meta-World's own policy reaches the goal; then the hand goes away."""
    observation, _ = reach.reset(seed=0)
    policy, infos, flags = ENV_POLICY_MAP["reach-v3"](), [], []
    for step in range(500):
        action = policy.get_action(observation) if step < 200 else np.array([0, 0, 1, 0])
        observation, reward, terminated, truncated, info = reach.step(np.clip(action, -1, 1).astype(np.float32))
        infos.append(info)
        flags.append((terminated, truncated))
        assert 0 <= reward <= 10
    assert flags == [(False, False)] * 499 + [(False, True)]
    assert [info["is_success"] for info in infos] == (np.cumsum([info["success"] for info in infos]) > 0).tolist()
    assert [info["is_success_at_end"] for info in infos] == [info["success"] == 1 for info in infos]
    assert infos[0]["is_success"] is False
    assert infos[-1]["is_success"] is True
    assert infos[-1]["is_success_at_end"] is False
    reach.reset()
    assert reach.step(np.zeros(4, np.float32))[4]["is_success"] is False, "of the new episode"


def test_sb3_is_told_of_the_time_limit():
    env = DummyVecEnv([lambda: Monitor(gym.make("sb3_trl/MetaWorldReach-v0"), info_keywords=("is_success",))])
    env.seed(0)
    first = env.reset()
    for _ in range(500):
        before, (observation, _, dones, infos) = first, env.step(np.zeros((1, 4)))
    assert dones[0]
    assert infos[0]["TimeLimit.truncated"]
    assert infos[0]["episode"]["l"] == 500
    assert infos[0]["episode"]["is_success"] is False
    end = infos[0]["terminal_observation"]
    np.testing.assert_array_equal(end[GOAL], before[0][GOAL])
    assert not np.array_equal(observation[0][GOAL], end[GOAL]), "the next episode's goal"


# --- pictures ---


@pytest.mark.skipif("MUJOCO_GL" not in os.environ and "DISPLAY" not in os.environ, reason="nothing to draw with")
def test_the_arm_is_above_the_table():
    env = gym.make("sb3_trl/MetaWorldReach-v0", render_mode="rgb_array", width=64, height=48)
    env.reset(seed=0)
    picture = env.render()
    env.close()
    assert (picture.shape, picture.dtype) == ((48, 64, 3), np.uint8)
    red, green, blue = np.moveaxis(picture.astype(int), -1, 0)
    arm, wood = red > 3 * green, (red < 2 * green) & (red > blue + 20)
    assert arm.sum() > 50
    assert arm.nonzero()[0].mean() < wood.nonzero()[0].mean(), "rows from the top"


# --- many tasks ---

NAMES = ["push", "reach", "door-close"]


def test_tasks_side_by_side_and_which_each_is():
    env = metaworld_vec_env(NAMES, seed=3, copies=2, n_goals=5)
    observations = env.reset()
    assert env.num_envs == 6
    assert observations.shape == (6, 42)
    assert env.observation_space.contains(observations[0])
    assert [info["task"] for info in env.reset_infos] == NAMES * 2
    np.testing.assert_array_equal(observations[:, 39:], np.tile(np.eye(3), (2, 1)))
    for number, name in enumerate(NAMES):
        alone = MetaWorldEnv(name, n_goals=5)
        np.testing.assert_array_equal(observations[number, :39], alone.reset(seed=3 + number)[0])
    observations, _, _, infos = env.step(np.zeros((6, 4)))
    assert [info["task"] for info in infos] == NAMES * 2
    np.testing.assert_array_equal(observations[:, 39:], np.tile(np.eye(3), (2, 1)))
    goals = [tuple(goal) for goal in observations[:, GOAL].tolist()]
    assert goals[:3] != goals[3:], "copies take their goals in other orders"


def test_seeds_that_follow_each_other_are_all_tasks():
    envs = [MultiTaskEnv(NAMES, n_goals=2) for _ in range(4)]
    tasks = [env.reset(seed=10 + rank)[1]["task"] for rank, env in enumerate(envs)]
    assert tasks == [NAMES[1], NAMES[2], NAMES[0], NAMES[1]]
    assert [env.reset()[1]["task"] for env in envs] == tasks, "without a seed it stays"
    assert [env.task for env in envs] == tasks
    assert envs[0].reset(seed=0)[1]["task"] == NAMES[0]


def test_without_any_seed_the_task_is_drawn():
    drawn = []
    for env in [MultiTaskEnv(NAMES, n_goals=2) for _ in range(2)]:
        env.np_random = np.random.default_rng(len(drawn))
        drawn += [env.reset()[1]["task"], env.reset()[1]["task"]]
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]


def test_in_processes_they_are_the_same():
    here, there = (metaworld_vec_env(NAMES[:2], vec_env_cls=cls) for cls in (DummyVecEnv, SubprocVecEnv))
    try:
        np.testing.assert_array_equal(here.reset(), there.reset())
        mine, theirs = here.step(np.ones((2, 4))), there.step(np.ones((2, 4)))
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[3] == list(theirs[3])
    finally:
        there.close()


def test_trpl_learns_with_normalised_observations():
    env = VecNormalize(metaworld_vec_env(NAMES), clip_obs=10.0)
    model = TRPL("MlpPolicy", env, n_steps=16, batch_size=24, n_epochs=1, n_critic_epochs=1, device="cpu")
    before = model.policy.action_net.weight.clone()
    model.learn(48)
    assert not before.equal(model.policy.action_net.weight)
    assert env.normalize_obs(env.get_original_obs()).shape == (3, 42)


def test_how_many_tasks_an_id_has():
    assert number_of_tasks("sb3_trl/MetaWorldMT10-v0") == 10
    assert number_of_tasks("sb3_trl/MetaWorldMT50-v0") == 50
    assert number_of_tasks("sb3_trl/MetaWorldMT10-v0", {"tasks": NAMES}) == 3
    assert number_of_tasks("sb3_trl/MetaWorldMT10-v0", {"task": "reach"}) == 1
    assert number_of_tasks("sb3_trl/MetaWorldReach-v0") == number_of_tasks("CartPole-v1") == number_of_tasks("?") == 1


def test_errors_say_what_can_be_given():
    with pytest.raises(
        ValueError, match=r"no task 'peg-insert'\. Did you mean 'peg-insert-side'\? It has assembly, .*"
    ):
        MetaWorldEnv("peg-insert")
    with pytest.raises(ValueError, match="tasks='MT11' is unknown: choose 'MT10' or 'MT50', or give a list"):
        metaworld_vec_env("MT11")
    with pytest.raises(ValueError, match="give the name of each task once"):
        MultiTaskEnv(["reach", "reach-v3"])
    with pytest.raises(ValueError, match="task='push' is none of the tasks: choose one of reach"):
        MultiTaskEnv(["reach"], task="push")
    with pytest.raises(ValueError, match="copies=0: there must be one environment"):
        metaworld_vec_env(NAMES, copies=0)
    with pytest.raises(ValueError, match="n_goals=0: give 1 or more, or None"):
        MetaWorldEnv("reach", n_goals=0)
    with pytest.raises(ValueError, match="goal_seed=-1: give 0 or more"):
        MetaWorldEnv("reach", goal_seed=-1)
    with pytest.raises(ValueError, match="render_mode='ansi' is unknown"):
        MetaWorldEnv("reach", render_mode="ansi")
    with pytest.raises(ValueError, match="camera_name='moon' is unknown: choose one of corner, "):
        MetaWorldEnv("reach", camera_name="moon")
