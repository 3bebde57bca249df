"""Compare TRPL and FixPO with SB3's PPO: the same task, the same seeds, the same log.

    python examples/compare.py
    python examples/compare.py --env Hopper-v5 --timesteps 300000 --seeds 3

`tensorboard --logdir runs/compare` shows the curves, and on the page "Custom scalars" how far each policy moved.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trl import TRPL, FixPO, TrustRegionCallback

COMMON = {"n_steps": 512, "batch_size": 64, "n_epochs": 10, "gamma": 0.95, "gae_lambda": 0.95}
METHODS: dict[str, Callable[..., BaseAlgorithm]] = {
    "TRPL": lambda *args, **kwargs: TRPL(
        *args, learning_rate=3e-4, critic_learning_rate=1e-3, mean_bound=0.05, cov_bound=0.002, **kwargs
    ),
    "FixPO": lambda *args, **kwargs: FixPO(*args, learning_rate=1e-3, kl_bound=0.2, **kwargs),
    "PPO": lambda *args, **kwargs: PPO(*args, learning_rate=1e-3, **kwargs),
}


class LargestStep(BaseCallback):
    """Keep the largest KL divergence of any state in any update."""

    def __init__(self) -> None:
        super().__init__()
        self.kl = 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.kl = max(self.kl, self.logger.name_to_value.get("trust_region/kl_max", 0.0))


def train(method: str, env_id: str, seed: int, timesteps: int, out: Path) -> tuple[float, float]:
    """Return the mean return after training, and the largest KL divergence on the way."""
    env = VecNormalize(make_vec_env(env_id, n_envs=4, seed=seed), gamma=COMMON["gamma"])
    model = METHODS[method]("MlpPolicy", env, seed=seed, device="cpu", tensorboard_log=str(out), **COMMON)
    step = LargestStep()
    # The callback records for PPO what TRPL and FixPO record themselves; the same for all three, it is the same.
    model.learn(timesteps, callback=CallbackList([TrustRegionCallback(), step]), tb_log_name=method)
    env.training, env.norm_reward = False, False
    return evaluate_policy(model, env, n_eval_episodes=10)[0], step.kl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--timesteps", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    args = parser.parse_args()

    th.set_num_threads(1)
    for method in METHODS:
        runs = [train(method, args.env, seed, args.timesteps, args.out) for seed in range(args.seeds)]
        returns, kl = np.array(runs).T
        each = ", ".join(f"{value:.1f}" for value in returns)
        print(f"{method:6} return {returns.mean():8.1f} ({each})   largest KL of a state {kl.max():.3f}", flush=True)


if __name__ == "__main__":
    main()
