"""A policy with a full covariance that depends on the state: exploration can be correlated between joints.

python examples/full_covariance.py
python examples/full_covariance.py --env HalfCheetah-v5 --projection w2 --timesteps 500000
"""

import argparse

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trl import TRPL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Reacher-v5")
    parser.add_argument("--projection", default="kl", choices=["kl", "w2", "frobenius", "joint_kl"])
    parser.add_argument("--timesteps", type=int, default=40_000)
    args = parser.parse_args()

    th.set_num_threads(1)
    env = VecNormalize(make_vec_env(args.env, seed=0))
    model = TRPL(
        "MlpPolicy",
        env,
        projection=args.projection,
        learning_rate=3e-4,
        batch_size=64,
        policy_kwargs={"covariance": "full", "contextual_std": True},
        seed=0,
        device="cpu",
    )
    model.learn(args.timesteps, progress_bar=True)

    observation = model.policy.obs_to_tensor(env.reset())[0]
    with th.no_grad():
        covariance = model.policy.get_distribution(observation).gaussian.covariance[0]
    std = covariance.diagonal().sqrt()
    print("standard deviations of the actions:", std.numpy().round(3))
    print("their correlations:", (covariance / std.outer(std)).numpy().round(3), sep="\n")


if __name__ == "__main__":
    main()
