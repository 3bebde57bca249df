"""An episode of Pendulum-v1 of the agent that smoke.sh has trained: what it saw, raw, and what it did.

python episode.py episode.npz
"""

import sys

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trl import TRPL

RUN = "logs/trpl/Pendulum-v1_1"


def main(path: str) -> None:
    env = VecNormalize.load(f"{RUN}/Pendulum-v1/vecnormalize.pkl", DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    env.training, env.norm_reward = False, False
    assert np.abs(env.obs_rms.mean).max() > 0.01, "without statistics there is nothing to be exported"
    model = TRPL.load(f"{RUN}/Pendulum-v1.zip", device="cpu")
    env.seed(0)
    normalized, done = env.reset(), [False]
    observations, actions = [], []
    while not done[0]:
        observations.append(env.get_original_obs()[0])
        action, _ = model.predict(normalized, deterministic=True)
        actions.append(action[0])
        normalized, _, done, _ = env.step(action)
    np.savez(path, observations=np.stack(observations), actions=np.stack(actions))


if __name__ == "__main__":
    main(*sys.argv[1:])
