"""Train for a minute, export the policy as ONNX, and act with the file: the actions are those of ``predict``.

    python examples/deploy.py
    python examples/deploy.py --timesteps 50000 --out pendulum.onnx

What runs the file needs NumPy and onnxruntime alone; docs/deploy.md says what it looks like without this package.
"""

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
import onnxruntime
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import sb3_trl
from sb3_trl import TRPL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/pendulum.onnx"))
    args = parser.parse_args()

    th.set_num_threads(1)
    env = VecNormalize(make_vec_env("Pendulum-v1", 4, seed=args.seed))
    model = TRPL("MlpPolicy", env, n_steps=250, batch_size=100, seed=args.seed, device="cpu")
    model.learn(args.timesteps)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    policy = sb3_trl.export(model, args.out)  # the environment's observation statistics come along
    print(policy)

    session = onnxruntime.InferenceSession(args.out)
    task = gym.make("Pendulum-v1")
    observation, _ = task.reset(seed=args.seed)
    score, difference, done = 0.0, 0.0, False
    while not done:
        (actions,) = session.run(None, {"observation": observation[None]})
        expected, _ = model.predict(env.normalize_obs(observation), deterministic=True)
        difference = max(difference, float(np.abs(actions[0] - expected).max()))
        observation, reward, terminated, truncated, _ = task.step(actions[0])
        score += float(reward)
        done = terminated or truncated
    print(f"return {score:.1f} over an episode; the largest difference from predict is {difference:.1e}")


if __name__ == "__main__":
    main()
