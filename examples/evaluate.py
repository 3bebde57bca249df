"""Evaluate a saved run: the mean return of the policy's best guess, and of the actions it explores with.

    python examples/evaluate.py
    python examples/evaluate.py --run runs/walker --env Walker2d-v5 --episodes 20

The run is a folder that examples/train.py has left.
"""

import argparse
from pathlib import Path

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trl import TRPL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/train"))
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1000)
    args = parser.parse_args()

    th.set_num_threads(1)
    env = VecNormalize.load(str(args.run / "vecnormalize.pkl"), make_vec_env(args.env, seed=args.seed))
    env.training = False  # the statistics are those of training, and stay so
    env.norm_reward = False  # returns in the task's own units
    model = TRPL.load(args.run / "model.zip", device="cpu")
    for name, deterministic in (("deterministic", True), ("stochastic", False)):
        mean, std = evaluate_policy(model, env, n_eval_episodes=args.episodes, deterministic=deterministic)
        print(f"{name:13} return {mean:8.1f} +- {std:.1f} over {args.episodes} episodes")


if __name__ == "__main__":
    main()
