"""One policy for three tasks whose rewards differ a hundredfold: one β for all of them, and one for each.

    python examples/tasks.py

The tasks are pendulums of another length each, and a one among zeros at the end of the observation says which. Rewards
of the second are ten times, those of the third a hundred times as large.
"""

import argparse

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trl import FixPO

#: Length of the pendulum in m, and what rewards are multiplied by.
TASKS = {"short": (0.7, 1.0), "medium": (1.0, 10.0), "long": (1.3, 100.0)}


class PendulumTask(gym.Wrapper):
    """One of the tasks: its number is in the observation, its name in ``info["task"]``."""

    def __init__(self, name: str) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.name = name
        self.unwrapped.l, self.scale = TASKS[name]
        self.one_hot = np.eye(len(TASKS), dtype=np.float32)[list(TASKS).index(name)]
        own = self.env.observation_space
        low, high = np.zeros(len(TASKS), np.float32), np.ones(len(TASKS), np.float32)
        self.observation_space = spaces.Box(np.append(own.low, low), np.append(own.high, high))

    def reset(self, **kwargs):
        """Begin an episode."""
        observation, info = self.env.reset(**kwargs)
        return np.append(observation, self.one_hot), info

    def step(self, action):
        """Take a step, and say in which task."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        info |= {"task": self.name}
        return np.append(observation, self.one_hot), self.scale * reward, terminated, truncated, info


def train(timesteps: int, **kwargs) -> FixPO:
    """Train one policy for all tasks, side by side."""
    env = VecNormalize(DummyVecEnv([lambda name=name: Monitor(PendulumTask(name)) for name in TASKS]), gamma=0.9)
    settings = {"n_steps": 400, "batch_size": 100, "gamma": 0.9, "learning_rate": 1e-3, "kl_bound": 0.1}
    return FixPO("MlpPolicy", env, seed=0, device="cpu", **settings, **kwargs).learn(timesteps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=120_000)
    args = parser.parse_args()

    th.set_num_threads(1)
    # The last three entries of an observation are the task; advantages are normalised among those of a task.
    for title, tasks in [("one β", {}), ("one β per task", {"tasks": len(TASKS), "normalize_advantage": "task"})]:
        model = train(args.timesteps, **tasks)
        log = model.logger.name_to_value
        print(f"{title}: largest KL of any state {log['fixpo/kl_max']:.3f}, of 0.1")
        for env, (name, (_, scale)) in zip(model.env.venv.envs, TASKS.items(), strict=True):
            rewards = np.mean(env.get_episode_rewards()[-20:]) / scale
            beta = log.get(f"fixpo/beta/{name}", log["fixpo/beta"])
            print(f"  {name:6} return {rewards:7.1f}  β {beta:.3f}")


if __name__ == "__main__":
    main()
