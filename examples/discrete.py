"""TRPL with discrete actions: every state's categorical policy stays within a KL bound of the old one.

    python examples/discrete.py

With `hard=True` that holds for the policy that acts, at every state of every batch. The second environment has several
actions at once (`MultiDiscrete`): the bound is on all of them together.
"""

import argparse

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trl import TRPL


class Match(gym.Env):
    """Name the three digits that are shown: 1 for each that is right."""

    observation_space = spaces.Box(0.0, 1.0, (3, 4), np.float32)
    action_space = spaces.MultiDiscrete([4, 4, 4])

    def reset(self, *, seed=None, options=None):
        """Show the first digits."""
        super().reset(seed=seed)
        self.n_steps = 0
        return self._show(), {}

    def step(self, action):
        """Count what is right, and show others."""
        reward = float((action == self.digits).sum())
        self.n_steps += 1
        return self._show(), reward, False, self.n_steps == 20, {}

    def _show(self):
        self.digits = self.np_random.integers(0, 4, 3)
        return np.eye(4, dtype=np.float32)[self.digits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=50_000)
    args = parser.parse_args()

    th.set_num_threads(1)
    for env_id in ("CartPole-v1", Match):
        model = TRPL(
            "MlpPolicy",
            make_vec_env(env_id, n_envs=8, seed=0),
            n_steps=128,
            batch_size=64,
            learning_rate=3e-4,
            kl_bound=0.03,
            trust_region_coef=10.0,
            hard=True,
            seed=0,
            device="cpu",
        )
        model.learn(args.timesteps)
        mean, std = evaluate_policy(model, make_vec_env(env_id, seed=100), n_eval_episodes=10)
        log = model.logger.name_to_value
        print(f"{model.action_space}: return {mean:.1f} ± {std:.1f}")
        print(f"  largest KL of a state in the last update: {log['trust_region/kl_max']:.4f} of 0.03")
        print(f"  states outside their trust region:        {log['trust_region/violation_fraction']:.1%}")


if __name__ == "__main__":
    main()
