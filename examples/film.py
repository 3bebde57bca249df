"""Film a saved run, on a machine without a screen too.

    python examples/film.py
    python examples/film.py --run runs/walker --env Walker2d-v5 --steps 1000 --out walker.mp4

The run is a folder that examples/train.py has left.
"""

import argparse
import os
import sys
from pathlib import Path

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # before MuJoCo is imported; "glfw" where there is a screen and no EGL

import gymnasium as gym
import imageio
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trl import TRPL
from sb3_trl.zoo.camera import bodies_are_followed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/train"))
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the episodes")
    parser.add_argument("--out", type=Path, default=Path("film.mp4"))
    args = parser.parse_args()

    th.set_num_threads(1)
    # A camera of MuJoCo's models, from the side, goes along with the body; Gymnasium's own stands still.
    camera = {"camera_name": "track"} if "mujoco" in str(gym.spec(args.env).entry_point) else {}
    plain = DummyVecEnv([lambda: gym.make(args.env, render_mode="rgb_array", **camera)])
    env = VecNormalize.load(str(args.run / "vecnormalize.pkl"), plain)
    env.training, env.norm_reward = False, False
    model = TRPL.load(args.run / "model.zip", device="cpu")

    env.seed(args.seed)
    total, observation = 0.0, env.reset()
    writer = imageio.get_writer(args.out, fps=plain.metadata["render_fps"], macro_block_size=2)
    with bodies_are_followed(), writer as film:
        for _ in range(args.steps):
            film.append_data(plain.envs[0].render())
            action, _ = model.predict(observation, deterministic=True)
            observation, reward, _, _ = env.step(action)
            total += float(reward[0])
    print(f"{args.out}: {args.steps} steps, reward {total / args.steps:.2f} per step")


if __name__ == "__main__":
    main()
