"""What lies between two Gaussians, according to each projection: Fig. 1 of Otto et al. (2021)."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sb3_trl.projections import FrobeniusProjection, Gaussian, KLProjection, Projection, WassersteinProjection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PROJECTIONS", "draw_interpolations", "gaussian", "interpolate"]

PROJECTIONS: dict[str, tuple[Projection, str]] = {
    "Frobenius": (FrobeniusProjection(), "C0"),
    "Wasserstein": (WassersteinProjection(), "C2"),
    "KL": (KLProjection(), "C3"),
}
ETAS = (8.0, 3.0, 1.0, 1 / 3, 1 / 8)


def gaussian(angle: float, long: float = 2.0, short: float = 0.5) -> Gaussian:
    """Return an ellipse at ``angle``, with the same entropy whatever the angle."""
    rotation = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
    )
    covariance = rotation @ torch.diag(torch.tensor([long, short], dtype=torch.float64).square()) @ rotation.T
    return Gaussian(torch.zeros(2, dtype=torch.float64), scale_tril=torch.linalg.cholesky(covariance))


def interpolate(projection: Projection, new: Gaussian, old: Gaussian, n: int = 800) -> tuple[np.ndarray, Gaussian]:
    """Project onto n trust regions, one for each state of a batch; return 1/(1 + η) and the projected Gaussians."""
    distance = projection.distance(new, old)[1]
    bounds = distance * torch.linspace(0.002, 1, n, dtype=torch.float64).square()
    path = projection(_repeat(new, n), _repeat(old, n), cov_bound=bounds)
    moved = [_coordinates(projection, x, old) for x in (path, new)]
    return (torch.linalg.matrix_norm(moved[0]) / torch.linalg.matrix_norm(moved[1])).numpy(), path


def draw_interpolations() -> Figure:
    """Draw the Gaussians between two of equal entropy for each projection, and all entropies on the way."""
    from matplotlib.figure import Figure

    old, new = gaussian(0.0), gaussian(math.pi / 3)
    figure = Figure(figsize=(13, 3.7), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.15))
    for axis, (name, (projection, colour)) in zip(axes, PROJECTIONS.items(), strict=False):
        weight, path = interpolate(projection, new, old)
        _draw_panel(axis, name, old, new, {eta: path[torch.tensor(_nearest(weight, eta))] for eta in ETAS})
        axes[3].plot(weight, path.entropy(), color=colour, linewidth=2)
        height = float(path.entropy()[_nearest(weight, 1.0)])
        axes[3].annotate(
            name, (0.5, height), (0, 12), textcoords="offset points", ha="center", va="center", color=colour
        )
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False)
    axes[3].axhline(float(old.entropy()), color="black", linewidth=0.8, linestyle=":")
    axes[3].set(title="(d) Entropy in nats", xlim=(0, 1), ylim=(2.1, 3.65), xlabel="1/(1 + η): old → new")
    axes[3].spines[["top", "right"]].set_visible(False)
    return figure


def _draw_panel(axis: Axes, name: str, old: Gaussian, new: Gaussian, between: dict[float, Gaussian]) -> None:
    """Draw the old and the new Gaussian and those between them."""
    from matplotlib import colormaps

    _draw_ellipse(axis, old, color="black", linewidth=2.5, label="old")
    for position, (eta, x) in enumerate(between.items()):
        colour = colormaps["viridis"]((position + 0.5) / len(between))
        _draw_ellipse(axis, x, color=colour, linewidth=1.5, label=f"η = {Fraction(eta).limit_denominator(10)}")
    _draw_ellipse(axis, new, color="black", linewidth=2.5, linestyle=(0, (1, 1)), label="new")
    panel = "abc"[list(PROJECTIONS).index(name)]
    axis.set(title=f"({panel}) {name}", aspect="equal", xlim=(-2.1, 2.1), ylim=(-1.9, 1.9))
    axis.axis("off")


def _draw_ellipse(axis: Axes, gaussian: Gaussian, **style: Any) -> None:
    """Draw the points at Mahalanobis distance 1."""
    angle = torch.linspace(0, 2 * math.pi, 200, dtype=torch.float64)
    x, y = gaussian.scale_tril @ torch.stack([angle.cos(), angle.sin()])
    axis.plot(x.numpy(), y.numpy(), **style)


def _repeat(x: Gaussian, n: int) -> Gaussian:
    """Return a batch of n times the same Gaussian."""
    return Gaussian(x.mean.expand(n, 2), scale_tril=x.scale_tril.expand(n, 2, 2))


def _coordinates(projection: Projection, x: Gaussian, old: Gaussian) -> torch.Tensor:
    """Return what the projection interpolates linearly, measured from the old Gaussian."""
    if isinstance(projection, KLProjection):
        return torch.linalg.inv(x.covariance) - torch.linalg.inv(old.covariance)
    if isinstance(projection, FrobeniusProjection):
        return x.covariance - old.covariance
    whitened = torch.linalg.solve_triangular(old.scale_tril, x.scale_tril.reshape(-1, 2, 2), upper=False)
    values, vectors = torch.linalg.eigh(whitened @ whitened.mT)
    return vectors @ torch.diag_embed(values.sqrt()) @ vectors.mT - torch.eye(2, dtype=values.dtype)


def _nearest(weight: np.ndarray, eta: float) -> int:
    """Return the index at which the weight of the new Gaussian is nearest to 1/(1 + η)."""
    return int(np.abs(weight - 1 / (1 + eta)).argmin())
