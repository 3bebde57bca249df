"""The projections in plain PyTorch, without Stable-Baselines3: search with one Gaussian under a trust region.

    python examples/projection_layer.py

Minimises the Rosenbrock function of two variables. Every iteration draws samples, takes gradient steps on the
importance-weighted objective of the *projected* Gaussian, and then adopts that projection, so that no iteration
moves further than the bounds allow.
"""

import argparse

import torch
from torch.nn.functional import softplus

from sb3_trl.projections import Gaussian, KLProjection, TrustRegionLayer


def objective(x: torch.Tensor) -> torch.Tensor:
    return -((1 - x[..., 0]).square() + 10 * (x[..., 1] - x[..., 0].square()).square())


def make_gaussian(mean: torch.Tensor, raw: torch.Tensor) -> Gaussian:
    """N(mean, LL^T), with softplus on L's diagonal."""
    return Gaussian(mean, scale_tril=raw.tril(-1) + torch.diag(softplus(raw.diagonal()) + 1e-4))


def inverse_softplus(x: torch.Tensor) -> torch.Tensor:
    return x + torch.log(-torch.expm1(-x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=150)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = TrustRegionLayer(KLProjection(mean_bound=0.1, cov_bound=0.005))
    mean, raw = torch.tensor([-1.0, 1.0]), torch.eye(2)
    for iteration in range(args.iterations):
        old = make_gaussian(mean, raw).detach()
        samples = torch.distributions.MultivariateNormal(old.mean, scale_tril=old.scale_tril).sample((500,))
        scores = objective(samples)
        advantages = (scores - scores.mean()) / scores.std()

        mean, raw = mean.clone().requires_grad_(), raw.clone().requires_grad_()
        optimizer = torch.optim.Adam([mean, raw], lr=0.03)
        for _ in range(20):
            projected = layer(make_gaussian(mean, raw), old)
            ratio = (projected.log_prob(samples) - old.log_prob(samples)).exp()
            optimizer.zero_grad()
            (-(ratio * advantages).mean()).backward()
            optimizer.step()

        with torch.no_grad():
            projected = layer(make_gaussian(mean, raw), old)
            tril = projected.scale_tril
            mean, raw = projected.mean.detach(), tril.tril(-1) + torch.diag(inverse_softplus(tril.diagonal() - 1e-4))
            mean_part, cov_part = layer.projection.distance(projected, old)
        if iteration % 10 == 0 or iteration == args.iterations - 1:
            print(
                f"{iteration:4}  objective {scores.mean():9.3f}  mean {mean.numpy().round(3)}  "
                f"KL {mean_part:.4f} + {cov_part:.4f}"
            )


if __name__ == "__main__":
    main()
