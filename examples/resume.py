"""Save a run, load it and go on: model, optimisers and observation statistics.

python examples/resume.py
"""

import argparse
from pathlib import Path

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trl import TRPL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--timesteps", type=int, default=20_000, help="before saving, and again after loading")
    parser.add_argument("--out", type=Path, default=Path("runs/resume"))
    args = parser.parse_args()

    th.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    env = VecNormalize(make_vec_env(args.env, seed=0), norm_reward=False)
    model = TRPL("MlpPolicy", env, tensorboard_log=str(args.out), seed=0, device="cpu")
    model.learn(args.timesteps)
    model.save(args.out / "model.zip")
    env.save(str(args.out / "vecnormalize.pkl"))
    print(f"saved after {model.num_timesteps} steps")

    # In another process, another day:
    env = VecNormalize.load(str(args.out / "vecnormalize.pkl"), make_vec_env(args.env, seed=1))
    model = TRPL.load(args.out / "model.zip", env=env, device="cpu")
    model.learn(args.timesteps, reset_num_timesteps=False)  # the same TensorBoard curve goes on
    print(f"went on to {model.num_timesteps} steps")


if __name__ == "__main__":
    main()
