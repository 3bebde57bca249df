"""Fig. 1 of the TRPL paper: what lies between two Gaussians, according to each projection.

    python examples/figure_1.py --out docs/img/figure_1.png

Two Gaussians of equal entropy; the new one is projected onto ever smaller trust regions around the old one. Every
projection interpolates, with a weight 1/(1 + eta) on the new Gaussian: Frobenius the covariances, W2 their square
roots (in the metric of the old one), KL the precisions.
"""

import argparse
import math
from fractions import Fraction
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from sb3_trl.projections import FrobeniusProjection, Gaussian, KLProjection, Projection, WassersteinProjection

PROJECTIONS = {
    "Frobenius": (FrobeniusProjection(), "C0"),
    "Wasserstein": (WassersteinProjection(), "C2"),
    "KL": (KLProjection(), "C3"),
}
ETAS = (8.0, 3.0, 1.0, 1 / 3, 1 / 8)
LABEL = {"textcoords": "offset points", "ha": "center", "va": "center"}


def gaussian(angle: float, long: float = 2.0, short: float = 0.5) -> Gaussian:
    """An ellipse at ``angle``, with the same entropy whatever the angle."""
    rotation = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
    )
    covariance = rotation @ torch.diag(torch.tensor([long, short], dtype=torch.float64).square()) @ rotation.T
    return Gaussian(torch.zeros(2, dtype=torch.float64), scale_tril=torch.linalg.cholesky(covariance))


def repeat(x: Gaussian, n: int) -> Gaussian:
    """A batch of n times the same Gaussian."""
    return Gaussian(x.mean.expand(n, 2), scale_tril=x.scale_tril.expand(n, 2, 2))


def interpolate(projection: Projection, new: Gaussian, old: Gaussian, n: int = 800) -> tuple[np.ndarray, Gaussian]:
    """Project onto n trust regions, one for each state of a batch; return 1/(1 + eta) and the projected Gaussians."""
    distance = projection.distance(new, old)[1]
    bounds = distance * torch.linspace(0.002, 1, n, dtype=torch.float64).square()
    path = projection(repeat(new, n), repeat(old, n), cov_bound=bounds)
    moved = [coordinates(projection, x, old) for x in (path, new)]
    return (torch.linalg.matrix_norm(moved[0]) / torch.linalg.matrix_norm(moved[1])).numpy(), path


def coordinates(projection: Projection, x: Gaussian, old: Gaussian) -> torch.Tensor:
    """What the projection interpolates linearly, measured from the old Gaussian."""
    if isinstance(projection, KLProjection):
        return torch.linalg.inv(x.covariance) - torch.linalg.inv(old.covariance)
    if isinstance(projection, FrobeniusProjection):
        return x.covariance - old.covariance
    whitened = torch.linalg.solve_triangular(old.scale_tril, x.scale_tril.reshape(-1, 2, 2), upper=False)
    values, vectors = torch.linalg.eigh(whitened @ whitened.mT)
    return vectors @ torch.diag_embed(values.sqrt()) @ vectors.mT - torch.eye(2, dtype=values.dtype)


def draw_ellipse(axis: plt.Axes, gaussian: Gaussian, **style: object) -> None:
    """Draw the points at Mahalanobis distance 1."""
    angle = torch.linspace(0, 2 * math.pi, 200, dtype=torch.float64)
    x, y = gaussian.scale_tril @ torch.stack([angle.cos(), angle.sin()])
    axis.plot(x, y, **style)


def draw_panel(axis: plt.Axes, name: str, old: Gaussian, new: Gaussian, between: dict[float, Gaussian]) -> None:
    """Draw the old and the new Gaussian and those between them."""
    draw_ellipse(axis, old, color="black", linewidth=2.5, label="old")
    for position, (eta, x) in enumerate(between.items()):
        colour = plt.cm.viridis((position + 0.5) / len(between))
        draw_ellipse(axis, x, color=colour, linewidth=1.5, label=f"η = {Fraction(eta).limit_denominator(10)}")
    draw_ellipse(axis, new, color="black", linewidth=2.5, linestyle=(0, (1, 1)), label="new")
    panel = "abc"[list(PROJECTIONS).index(name)]
    axis.set(title=f"({panel}) {name}", aspect="equal", xlim=(-2.1, 2.1), ylim=(-1.9, 1.9))
    axis.axis("off")


def nearest(weight: np.ndarray, eta: float) -> int:
    """The index at which the weight of the new Gaussian is nearest to 1/(1 + eta)."""
    return int(np.abs(weight - 1 / (1 + eta)).argmin())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("figure_1.png"))
    args = parser.parse_args()

    torch.set_num_threads(1)
    old, new = gaussian(0.0), gaussian(math.pi / 3)
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.7), layout="constrained", width_ratios=(1, 1, 1, 1.15))
    for axis, (name, (projection, colour)) in zip(axes, PROJECTIONS.items(), strict=False):
        weight, path = interpolate(projection, new, old)
        draw_panel(axis, name, old, new, {eta: path[nearest(weight, eta)] for eta in ETAS})
        axes[3].plot(weight, path.entropy(), color=colour, linewidth=2)
        axes[3].annotate(name, (0.5, float(path.entropy()[nearest(weight, 1.0)])), (0, 12), **LABEL, color=colour)
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False)
    axes[3].axhline(float(old.entropy()), color="black", linewidth=0.8, linestyle=":")
    axes[3].set(title="(d) Entropy in nats", xlim=(0, 1), ylim=(2.1, 3.65), xlabel="1/(1 + η): old → new")
    axes[3].spines[["top", "right"]].set_visible(False)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=150)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
