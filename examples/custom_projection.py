"""Train TRPL with a trust region of your own: here, in the logarithm of the standard deviations.

python examples/custom_projection.py
"""

import argparse

import torch as th

from sb3_trl import TRPL
from sb3_trl.projections import Gaussian, Projection


class LogProjection(Projection):
    """Trust region in sum_i log²(std_i / std_old,i): doubling a standard deviation is as far as halving it.

    The mean's part, and its projection, are the Mahalanobis ones that every `Projection` starts with.
    """

    def cov_distance(self, p: Gaussian, q: Gaussian) -> th.Tensor:
        """The covariance's part of the distance, one number for each state."""
        return (p.std / q.std).log().square().sum(-1)

    def project_std(self, new: Gaussian, old: Gaussian, bound: float | th.Tensor) -> th.Tensor:
        """The projected standard deviations."""
        step = (new.std / old.std).log()
        t = (step.square().sum(-1) / bound).clamp(min=1).rsqrt().unsqueeze(-1)  # 1 inside the bound
        return th.where(t == 1, new.std, old.std * (t * step).exp())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=20_000)
    args = parser.parse_args()

    th.set_num_threads(1)
    projection = LogProjection(mean_bound=0.05, cov_bound=0.002)
    model = TRPL("MlpPolicy", "Pendulum-v1", projection=projection, learning_rate=3e-4, seed=0, device="cpu")
    model.learn(args.timesteps)

    log = model.logger.name_to_value
    for part in ("mean", "cov"):
        distance, bound = log[f"trust_region/{part}_distance_mean"], log[f"trust_region/{part}_bound"]
        print(f"last update, {part}: mean distance {distance:.2g}, bound {bound:.2g}")


if __name__ == "__main__":
    main()
