"""MiniGrid as vectors: nothing of the view is lost, and SB3 takes it."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env

from sb3_trl.envs import HiddenEntries

pytest.importorskip("minigrid", reason='pip install "sb3-trl[pixels]"')
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from minigrid.wrappers import FullyObsWrapper, RGBImgPartialObsWrapper, ViewSizeWrapper

from sb3_trl.envs import OneHotGrid

#: By id: MiniGrid's own, and its time limit.
IDS = {
    "sb3_trl/MiniGridDoorKey5x5-v0": ("MiniGrid-DoorKey-5x5-v0", 250),
    "sb3_trl/MiniGridDoorKey6x6-v0": ("MiniGrid-DoorKey-6x6-v0", 360),
    "sb3_trl/MiniGridDoorKey8x8-v0": ("MiniGrid-DoorKey-8x8-v0", 640),
    "sb3_trl/MiniGridDoorKey16x16-v0": ("MiniGrid-DoorKey-16x16-v0", 2560),
    "sb3_trl/MiniGridMemoryS7-v0": ("MiniGrid-MemoryS7-v0", 245),
    "sb3_trl/MiniGridMemoryS9-v0": ("MiniGrid-MemoryS9-v0", 405),
    "sb3_trl/MiniGridMemoryS11-v0": ("MiniGrid-MemoryS11-v0", 605),
    "sb3_trl/MiniGridMemoryS13-v0": ("MiniGrid-MemoryS13-v0", 845),
    "sb3_trl/MiniGridMemoryS13Random-v0": ("MiniGrid-MemoryS13Random-v0", 845),
    "sb3_trl/MiniGridMemoryS17Random-v0": ("MiniGrid-MemoryS17Random-v0", 1445),
}
SMALL = ["sb3_trl/MiniGridDoorKey5x5-v0", "sb3_trl/MiniGridMemoryS7-v0"]


def image_of(vector: np.ndarray, side: int) -> np.ndarray:
    """Take the vector apart again into (object, colour, state)."""
    cells = vector[:-4].reshape(side, side, -1)
    n_objects, n_colors = len(OBJECT_TO_IDX), len(COLOR_TO_IDX)
    parts = np.split(cells, [n_objects, n_objects + n_colors], axis=-1)
    assert all((part.sum(-1) == 1).all() for part in parts)
    return np.stack([part.argmax(-1) for part in parts], -1)


@pytest.mark.parametrize("env_id", IDS)
def test_it_is_minigrids_task(env_id):
    """The same seed and actions: the same view, rewards and ends."""
    env, its = gym.make(env_id), gym.make(IDS[env_id][0])
    assert env.unwrapped.max_steps == IDS[env_id][1]
    env.action_space.seed(0)
    vector, whole = env.reset(seed=5)[0], its.reset(seed=5)[0]
    for _ in range(50):
        np.testing.assert_array_equal(image_of(vector, 7), whole["image"])
        assert vector[-4:].argmax() == whole["direction"]
        assert vector[-4:].sum() == 1
        action = env.action_space.sample()
        (vector, *mine, _), (whole, *theirs, _) = env.step(action), its.step(action)
        assert mine == theirs
        if mine[1]:
            vector, whole = env.reset()[0], its.reset()[0]


def test_the_whole_grid_is_encoded_with_the_agents_direction():
    env = OneHotGrid(FullyObsWrapper(gym.make("MiniGrid-DoorKey-5x5-v0")))
    vector, _ = env.reset(seed=0)
    np.testing.assert_array_equal(image_of(vector, 5), env.env.observation(env.unwrapped.gen_obs())["image"])
    vectors = [env.step(0)[0] for _ in range(4)]  # once around
    assert len(np.unique(vectors, axis=0)) == 4
    np.testing.assert_array_equal(vectors[-1], vector)


def test_other_views_are_encoded_too():
    env = OneHotGrid(ViewSizeWrapper(gym.make("MiniGrid-DoorKey-6x6-v0"), 3))
    np.testing.assert_array_equal(image_of(env.reset(seed=0)[0], 3), env.env.observation({})["image"])


@pytest.mark.parametrize("env_id", SMALL)
def test_time_limits_truncate(env_id):
    env = gym.make(env_id)
    env.reset(seed=0)
    ends = [env.step(0)[1:4] for _ in range(IDS[env_id][1])]  # turns round and round
    assert set(ends[:-1]) == {(0, False, False)}
    assert ends[-1] == (0, False, True)


@pytest.mark.parametrize("env_id", SMALL)
def test_sb3_takes_it_and_it_can_be_drawn(env_id):
    env = gym.make(env_id, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
    assert env.render().shape[2] == 3
    assert env.spec.make().observation_space == env.observation_space
    PPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, device="cpu").learn(64)


def test_the_error_names_what_is_taken():
    with pytest.raises(ValueError, match="MiniGrid's own observations, 'image' and 'direction', not those of Box"):
        OneHotGrid(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="let it be the first of the wrappers"):
        OneHotGrid(RGBImgPartialObsWrapper(gym.make("MiniGrid-DoorKey-5x5-v0")))
    with pytest.raises(ValueError, match="observations that are vectors, not those of Dict"):
        HiddenEntries(gym.make("MiniGrid-DoorKey-5x5-v0"), [0])
