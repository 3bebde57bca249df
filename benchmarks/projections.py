"""Time the projections, forward and backward, on one thread: medians in one run.

python benchmarks/projections.py            # prints a Markdown table
python benchmarks/projections.py --quick    # the sizes of one minibatch only
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from sb3_trl.projections import FrobeniusProjection, Gaussian, KLProjection, Projection, WassersteinProjection

PROJECTIONS: dict[str, type[Projection]] = {
    "KL": KLProjection,
    "W2": WassersteinProjection,
    "FROB": FrobeniusProjection,
}
SHAPES = {
    "diagonal, non-contextual": [(32, 6), (64, 6), (2048, 6), (512, 17)],
    "diagonal, contextual": [(32, 6), (64, 6), (2048, 6), (512, 17)],
    "full, contextual": [(32, 6), (64, 6), (512, 17), (2048, 17)],
}


def old_policy(kind: str, batch: int, dim: int) -> Gaussian:
    """Return a batch of old policies with random covariances of moderate condition."""
    mean = torch.randn(batch, dim)
    if kind == "diagonal, non-contextual":
        return Gaussian(mean, std=0.5 + torch.rand(dim))
    if kind == "diagonal, contextual":
        return Gaussian(mean, std=0.5 + torch.rand(batch, dim))
    noise = 0.3 * torch.randn(batch, dim, dim) / dim**0.5
    return Gaussian(mean, scale_tril=noise.tril(-1) + torch.diag_embed(0.5 + torch.rand(batch, dim)))


def prediction(old: Gaussian, distance: float) -> Gaussian:
    """Return a prediction whose every state is about ``distance`` standard deviations away; a leaf."""
    mean = old.mean + distance * old.mean.abs().mean() * torch.randn_like(old.mean)
    if old.is_diagonal:
        scale = old.scale * (1 + distance * torch.rand_like(old.scale))
    else:
        scale = old.scale * (1 + distance) + distance * 0.1 * torch.randn_like(old.scale).tril()
    return old.with_scale(scale.requires_grad_(), mean.requires_grad_())


def median_ms(function: Callable[[], object], repetitions: int) -> float:
    """Return the median duration in milliseconds after a warm-up."""
    function()
    durations = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        durations.append(time.perf_counter() - start)
    return 1e3 * statistics.median(durations)


def measure(projection: Projection, old: Gaussian, new: Gaussian, repetitions: int) -> tuple[float, float, float]:
    """Return milliseconds forward, milliseconds forward and backward, and the share of states projected."""
    inside = projection.is_inside(new.detach(), old, 1e9, projection.cov_bound).float().mean().item()

    def forward() -> Gaussian:
        return projection(new, old)

    def both() -> None:
        projected = forward()
        torch.autograd.backward([projected.mean.sum() + projected.scale.sum()])

    return median_ms(forward, repetitions), median_ms(both, repetitions), 1 - inside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only batches of 32 and 64")
    parser.add_argument("--repetitions", type=int, default=41)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| covariance | states × actions | projection | covariances projected | forward | forward + backward |")
    print("|---|---|---|---|---|---|")
    for kind, shapes in SHAPES.items():
        for batch, dim in shapes:
            if args.quick and batch > 64:
                continue
            old = old_policy(kind, batch, dim)
            for name, projection in PROJECTIONS.items():
                for distance in (0.3, 1e-4):
                    new = prediction(old, distance)
                    forward, both, share = measure(projection(), old, new, args.repetitions)
                    row = f"| {kind} | {batch} × {dim} | {name} | {share:.0%} | {forward:.2f} ms | {both:.2f} ms |"
                    print(row, flush=True)


if __name__ == "__main__":
    main()
