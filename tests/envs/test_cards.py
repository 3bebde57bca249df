"""POPGym's card games: who remembers wins, nobody else does."""

import warnings
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env

from sb3_trl import TRPL

pytest.importorskip("popgym", reason='pip install "sb3-trl[pixels]"')

LEVELS = {"Easy": 0, "Medium": 1, "Hard": 2}
every_game = pytest.mark.parametrize("game", ["Autoencode", "CountRecall", "RepeatPrevious"])


def played(env: gym.Env, agent: Callable[[list[np.ndarray]], int], seed: int | None = 0) -> tuple[np.ndarray, float]:
    """Return what was seen in an episode, and the return."""
    seen, total, done = [env.reset(seed=seed)[0]], 0.0, False
    while not done:
        observation, reward, done, truncated, _ = env.step(agent(seen))
        assert not truncated
        assert env.observation_space.contains(observation)
        seen.append(observation)
        total += reward
    return np.array(seen), total


def repeats(seen: list[np.ndarray], distance: int) -> int:
    return int(seen[-distance].argmax()) if len(seen) >= distance else 0


def recites(seen: list[np.ndarray]) -> int:
    """Suits in reverse order. The first two entries say "play" or "watch": the last card comes with "play"."""
    n_playing = int(sum(vector[0] for vector in seen))
    cards = [int(vector[2:].argmax()) for vector in seen[: len(seen) - n_playing + 1]]
    return cards[-n_playing] if n_playing else 0


def counts(seen: list[np.ndarray]) -> int:
    half = len(seen[0]) // 2
    return int(sum(vector[:half] @ seen[-1][half:] for vector in seen))


@pytest.mark.parametrize("level", LEVELS)
def test_who_remembers_wins(level):
    distance = (4, 32, 64)[LEVELS[level]]
    _, total = played(gym.make(f"sb3_trl/POPGymRepeatPrevious{level}-v0"), lambda seen: repeats(seen, distance))
    assert total == pytest.approx(1)
    assert played(gym.make(f"sb3_trl/POPGymCountRecall{level}-v0"), counts)[1] == pytest.approx(1)


def test_who_recites_wins():
    """52 cards are shown, and named from the last to the first."""
    seen, total = played(gym.make("sb3_trl/POPGymAutoencodeEasy-v0"), recites)
    assert total == pytest.approx(1)
    assert len(seen) - 1 == 51 + 52


@every_game
def test_seeds_repeat_whatever_was_played_before(game):
    env, other = (gym.make(f"sb3_trl/POPGym{game}Easy-v0") for _ in range(2))
    played(other, lambda seen: 0, seed=8)
    mine, its = (played(one, lambda seen: len(seen) % 4, seed=3) for one in (env, other))
    np.testing.assert_array_equal(mine[0], its[0])
    assert mine[1] == its[1]
    assert not np.array_equal(played(env, lambda seen: 0, seed=4)[0], mine[0])
    assert not np.array_equal(played(env, lambda seen: 0, seed=None)[0], played(env, lambda seen: 0, seed=None)[0])


@every_game
def test_sb3_takes_it(game):
    env = gym.make(f"sb3_trl/POPGym{game}Easy-v0")
    assert env.observation_space.dtype == np.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
    for algorithm in (PPO, TRPL):
        algorithm("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, device="cpu").learn(64)
    assert env.spec.make().observation_space == env.observation_space


def test_what_info_says_stays_as_it_was():
    """Gymnasium warns of infos that change after they were handed out; POPGym's own do."""
    env = gym.make("sb3_trl/POPGymCountRecallEasy-v0")
    infos = [env.reset(seed=0)[1], *(env.step(0)[4] for _ in range(5))]
    assert [info["counts"].sum() for info in infos] == [1, 2, 3, 4, 5, 6]


def test_there_is_nothing_to_look_at():
    with pytest.raises(ValueError, match="render_mode='rgb_array': POPGym's card games draw no pictures"):
        gym.make("sb3_trl/POPGymAutoencodeEasy-v0", render_mode="rgb_array")
