"""A policy with a memory, and one without, where a memory is needed.

    python examples/recurrent.py

A digit is shown once and asked for some steps later. In every update the policy's distribution changes by at most
`kl_bound` at every step of every episode, as it is acted: each network remembers with its own hidden states.
"""

import argparse

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trl import FixPO, RecurrentFixPO


class Recall(gym.Env):
    """Name in the last step the digit that was shown in the first: 1 if it is right."""

    observation_space = spaces.Box(0.0, 1.0, (5,), np.float32)
    action_space = spaces.Discrete(4)
    length = 8

    def reset(self, *, seed=None, options=None):
        """Show the digit."""
        super().reset(seed=seed)
        self.digit, self.n_steps = int(self.np_random.integers(4)), 0
        return np.eye(5, dtype=np.float32)[self.digit], {}

    def step(self, action):
        """Show nothing, and in the end that it is time to name it."""
        self.n_steps += 1
        is_over = self.n_steps == self.length
        observation = np.zeros(5, np.float32)
        observation[4] = self.n_steps == self.length - 1
        return observation, float(is_over and action == self.digit), is_over, False, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=100_000)
    args = parser.parse_args()

    th.set_num_threads(1)
    settings = {"n_steps": 64, "batch_size": 256, "kl_bound": 0.2, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    lstm = {"lstm_hidden_size": 32, "net_arch": [32]}
    for model in (
        FixPO("MlpPolicy", make_vec_env(Recall, n_envs=16, seed=0), **settings),
        RecurrentFixPO("MlpLstmPolicy", make_vec_env(Recall, n_envs=16, seed=0), policy_kwargs=lstm, **settings),
    ):
        model.learn(args.timesteps)
        mean, _ = evaluate_policy(model, make_vec_env(Recall, seed=100), n_eval_episodes=100)
        log = model.logger.name_to_value
        print(f"{type(model).__name__} with {type(model.policy).__name__}: {mean:.0%} recalled")
        print(f"  largest KL of a step in the last update: {log['fixpo/kl_max']:.4f} of {model.kl_bound}")

    env, states, start = Recall(), None, np.ones(1, bool)
    observation, _ = env.reset(seed=3)
    for _ in range(env.length):  # hidden states are handed from step to step
        action, states = model.predict(observation, state=states, episode_start=start, deterministic=True)
        observation, reward, *_ = env.step(action)
        start = np.zeros(1, bool)
    print(f"Shown {env.digit}, it named {action}: reward {reward:.0f}")


if __name__ == "__main__":
    main()
