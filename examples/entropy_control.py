"""Keep the policy exploring: a lower bound on its entropy that falls over training, whatever the reward says.

    python examples/entropy_control.py

The bound decays from the first batch's entropy to `target_entropy` nats per action dimension (0 is a standard
deviation of 0.24); a smaller `temperature` decays faster.
"""

import argparse

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trl import TRPL


class PrintEntropy(BaseCallback):
    """Print the entropy and its bound after every update."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        log = self.logger.name_to_value
        if "trust_region/entropy_bound" in log:
            entropy, bound = log["trust_region/entropy"], log["trust_region/entropy_bound"]
            print(f"{self.num_timesteps:>8} steps   entropy {entropy:7.3f}   bound {bound:7.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=40_000)
    args = parser.parse_args()

    th.set_num_threads(1)
    model = TRPL(
        "MlpPolicy",
        "Pendulum-v1",
        learning_rate=3e-4,
        entropy_schedule="exp",  # or "linear"
        target_entropy=0.0,
        temperature=0.5,
        entropy_equality=False,  # True: the entropy is the bound, instead of at least the bound
        seed=0,
        device="cpu",
    )
    model.learn(args.timesteps, callback=PrintEntropy())


if __name__ == "__main__":
    main()
