"""Bounds of actions can be lifted."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO

from sb3_trl import TRPL
from sb3_trl.envs import UnboundedActions

ENV_ID = "sb3_trl/ReacherSparse5-v0"


class Witness(gym.Wrapper):
    """Keeps the actions that reach the environment."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.actions: list[np.ndarray] = []

    def step(self, action):
        self.actions.append(action)
        return self.env.step(action)


@pytest.mark.parametrize("algorithm", [TRPL, PPO])
def test_raw_actions_reach_the_environment(algorithm):
    for lifted in (False, True):
        witness = Witness(gym.make(ENV_ID))
        env = UnboundedActions(witness) if lifted else witness
        model = algorithm("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, seed=0, device="cpu")
        model.learn(64)
        drawn = model.rollout_buffer.actions.reshape(64, 5)
        received = np.array(witness.actions[:64])
        assert np.abs(drawn).max() > 1
        np.testing.assert_array_equal(received, drawn if lifted else drawn.clip(-1, 1))


def test_the_lifted_space():
    env = UnboundedActions(gym.make("HalfCheetah-v5"))
    assert isinstance(env.action_space, spaces.Box)
    assert (env.action_space.shape, env.action_space.dtype) == ((6,), np.float32)
    assert np.isfinite([env.action_space.low, env.action_space.high]).all()
    assert env.action_space.contains(np.full(6, 1000, np.float32))
    assert env.spec.make().action_space == env.action_space
    with pytest.raises(ValueError, match="lifts the bounds of a Box of actions, not of Discrete"):
        UnboundedActions(gym.make("CartPole-v1"))


def test_the_zoo_trains_on_it_with_the_wrapper(tmp_path, run):
    (tmp_path / "raw.yml").write_text(
        f"{ENV_ID}:\n  env_wrapper: sb3_trl.envs.UnboundedActions\n  policy: MlpPolicy\n  n_timesteps: 64\n"
        "  n_steps: 64\n  batch_size: 32\n  n_epochs: 1\n  n_critic_epochs: 1\n"
    )
    code, out, error = run(f"train --algo trpl --env {ENV_ID} --conf-file raw.yml -f logs --eval-freq -1 --device cpu")
    assert code == 0, out + error
    (saved,) = Path(tmp_path).rglob("sb3_trl-ReacherSparse5-v0.zip")
    assert TRPL.load(saved, device="cpu").action_space.high[0] > 1
