"""ReacherSparse: the task is the one described, and solvable."""

import os
import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3
from support import load_example

reacher = load_example("reacher")

IDS = ["sb3_trl/ReacherSparse5-v0", "sb3_trl/ReacherSparse5Balanced-v0"]
every_id = pytest.mark.parametrize("env_id", IDS)
IDLE = np.zeros(5, np.float32)


def episode(env: gym.Env, seed: int = 0, action: np.ndarray = IDLE) -> list[tuple]:
    env.reset(seed=seed)
    steps = [env.step(action)]
    while not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(action))
    return steps


# --- the interface ---


@every_id
def test_gymnasiums_checker_finds_nothing(env_id):
    """Nothing but the remark that observations are unbounded, which it has for every MuJoCo task."""
    env = gym.make(env_id, render_mode="rgb_array").unwrapped
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env, skip_render_check=True)
        check_env_of_sb3(env, warn=True)
    assert all("infinity" in str(warning.message) for warning in caught)


def test_importing_is_enough_and_cheap():
    code = (
        "import sys, gymnasium as gym, sb3_trl.envs\n"
        "assert not {'mujoco', 'torch', 'stable_baselines3'} & {*sys.modules}\n"
        "print(gym.make('sb3_trl/ReacherSparse5-v0').reset(seed=0)[0].shape)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("(21,)", "")


def test_gymnasium_can_import_it_by_itself():
    code = "import gymnasium as gym; print(gym.make('sb3_trl.envs:sb3_trl/ReacherSparse5-v0').spec.max_episode_steps)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "200"


@every_id
def test_seeds_and_copies(env_id):
    env, twin = gym.make(env_id), pickle.loads(pickle.dumps(gym.make(env_id).unwrapped))
    assert twin.balanced == env.unwrapped.balanced == ("Balanced" in env_id)
    for mine, its in zip(episode(env, 3, IDLE + 0.1), episode(twin, 3, IDLE + 0.1), strict=True):
        np.testing.assert_array_equal(mine[0], its[0])
        assert mine[1] == its[1]
    assert not np.array_equal(env.reset(seed=4)[0], env.reset(seed=5)[0])


@pytest.mark.skipif("MUJOCO_GL" not in os.environ and "DISPLAY" not in os.environ, reason="nothing to draw with")
def test_pictures_show_the_arm_and_the_goal():
    env = gym.make(IDS[0], render_mode="rgb_array", width=200, height=200)
    env.reset(seed=0)
    before = env.render().astype(int)
    assert before.shape == (200, 200, 3)
    red = (before[..., 0] > 150) & (before[..., 1] < 100)
    row, column = np.argwhere(red).mean(0)
    goal = env.unwrapped.data.mocap_pos[0]
    metre = 200 / (2 * 1.3 * np.tan(np.pi / 8))
    np.testing.assert_allclose([column, row], [100 + goal[0] * metre, 100 - goal[1] * metre], atol=2)
    for _ in range(10):
        env.step(np.full(5, 0.2, np.float32))
    assert np.abs(env.render().astype(int) - before).max() > 50
    env.close()


# --- the task ---


@every_id
def test_observations_are_what_the_documentation_says(env_id):
    env = gym.make(env_id)
    observation, _ = env.reset(seed=1)
    rng = np.random.default_rng(0)
    for step in range(1, 40):
        observation, *_ = env.step(rng.uniform(-1, 1, 5).astype(np.float32))
        data = env.unwrapped.data
        np.testing.assert_array_equal(observation[:5], np.cos(data.qpos))
        np.testing.assert_array_equal(observation[5:10], np.sin(data.qpos))
        np.testing.assert_array_equal(observation[12:17], data.qvel)
        tip = reacher.fingertip(np.arctan2(observation[5:10], observation[:5]))
        np.testing.assert_allclose(observation[17:19], tip - observation[10:12], atol=1e-12)
        assert observation[19] == 0
        assert observation[20] == step


def test_the_start_of_an_episode():
    env = gym.make(IDS[0])
    starts = np.array([env.reset(seed=seed)[0] for seed in range(1000)])
    assert np.abs(np.arctan2(starts[:, 5:10], starts[:, :5])).max() <= 0.1
    assert np.abs(starts[:, 12:17]).max() <= 0.005
    assert (starts[:, 20] == 0).all()
    radius, direction = np.linalg.norm(starts[:, 10:12], axis=1), np.arctan2(starts[:, 11], starts[:, 10])
    assert radius.max() <= 0.5
    # Uniform in the disc: squared radius and direction are uniform in their ranges.
    for values in ((radius / 0.5) ** 2, (direction + np.pi) / (2 * np.pi)):
        np.testing.assert_allclose(np.quantile(values, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.05)


def test_rewards():
    """Every step costs its action; distance and speed count in the 200th, which truncates the episode."""
    env, action = gym.make(IDS[0]).unwrapped, np.array([0.1, -0.2, 0.3, 0.0, 0.05], np.float32)
    steps = episode(env, action=action)
    assert len(steps) == 200
    for _, reward, terminated, truncated, info in steps[:-1]:
        assert reward == pytest.approx(-np.square(action.astype(float)).sum())
        assert (terminated, truncated, info["reward_dist"], info["reward_vel"]) == (False, False, 0, 0)
    observation, reward, terminated, truncated, info = steps[-1]
    assert (terminated, truncated) == (False, True)
    distance, speed = np.linalg.norm(observation[17:20]), np.linalg.norm(observation[12:17])
    assert info["distance"] == pytest.approx(distance)
    assert reward == pytest.approx(-np.square(action.astype(float)).sum() - 200 * distance - speed)


def test_the_balanced_variant_wants_the_last_link_along_x():
    plain, balanced = (gym.make(env_id).unwrapped for env_id in IDS)
    action = np.full(5, 0.3, np.float32)
    totals = []
    for mine, its in zip(episode(plain, action=action), episode(balanced, action=action), strict=True):
        np.testing.assert_array_equal(mine[0], its[0])
        angle = np.arctan2(its[0][5:10], its[0][:5]).sum()
        wrapped = abs((angle + np.pi) % (2 * np.pi) - np.pi)
        assert its[1] - mine[1] == pytest.approx(-wrapped)
        totals.append(wrapped)
    assert max(totals) > 3, "the direction went all the way round"


def test_the_task_can_be_solved():
    """Inverse kinematics, then a spring and a damper at every joint: at the goal, at rest, for next to nothing."""
    env = gym.make(IDS[0])
    for seed in range(20):
        total, info, _ = reacher.run_episode(env, seed)
        assert info["distance"] < 0.02
        assert total > -1
    idle = np.mean([sum(step[1] for step in episode(env, seed)) for seed in range(20)])
    assert idle < -50


def test_goals_at_the_rim_can_be_reached():
    for direction in np.linspace(-np.pi, np.pi, 17):
        goal = 0.5 * np.array([np.cos(direction), np.sin(direction)])
        assert np.linalg.norm(reacher.fingertip(reacher.inverse_kinematics(goal)) - goal) < 0.02


def test_the_simulator_limits_torques_and_the_reward_charges_the_action():
    large, bounded = (gym.make(IDS[0]).unwrapped for _ in range(2))
    for mine, its in zip(episode(large, action=IDLE + 3), episode(bounded, action=IDLE + 1), strict=True):
        np.testing.assert_array_equal(mine[0], its[0])
        assert (mine[4]["reward_ctrl"], its[4]["reward_ctrl"]) == (-45, -5)
