"""What the tests of rollouts share: models that act in every space."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

N_STEPS, N_ENVS = 50, 3
ACTION_SPACES = {
    "box": spaces.Box(-0.3, 0.4, (2,), np.float32),
    "matrix": spaces.Box(-1.0, 1.0, (2, 2), np.float32),
    "discrete": spaces.Discrete(4),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
}


class AnyActionEnv(gym.Env):
    """Episodes end at random, half of them by a time limit; what happens depends on every action."""

    def __init__(self, action_space: spaces.Space) -> None:
        self.action_space = action_space
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=4).astype(np.float32)
        return self.state, {}

    def step(self, action):
        assert self.action_space.contains(action), action
        push = np.float32(np.sum(action))
        self.state = (0.9 * self.state + push * self.np_random.normal(size=4)).astype(np.float32)
        ends, truncated = self.np_random.random(2) < (0.1, 0.5)
        return self.state, float(self.state[0]), bool(ends and not truncated), bool(ends and truncated), {}


def make(cls: type, space: str, normalize: bool = False, policy: str | type = "MlpPolicy", **kwargs):
    env = make_vec_env(lambda: AnyActionEnv(ACTION_SPACES[space]), N_ENVS, seed=0)
    env = VecNormalize(env, gamma=0.9) if normalize else env
    return cls(policy, env, n_steps=N_STEPS, batch_size=N_STEPS, gamma=0.9, seed=0, device="cpu", **kwargs)
