"""The closed-form projection onto a ball, shared by the mean, Wasserstein and Frobenius projections."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["length", "radial_projection", "radial_weight"]


def radial_weight(distance: Tensor, bound: Tensor | float, rounding: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Return t = min(1, √ε/D), the share of the step that the bound allows (eqs 6, 7, 9), and where D ≤ √ε.

    In the paper's multiplier η: t = 1/(1 + η). Outside, t is shortened by what rounding the projected
    parameters to floating point can add to their distance, so that the numbers themselves obey the bound;
    and what is nearer to the bound than D can be computed counts as outside.

    :param distance: D (not squared), ``(*batch,)``.
    :param bound: ε, positive; broadcasts to the batch.
    :param rounding: What rounding the result can add to D; broadcasts to the batch.
    """
    info = torch.finfo(distance.dtype)
    root = (1 - 4 * info.eps) * (bound.to(distance.dtype).sqrt() if isinstance(bound, Tensor) else math.sqrt(bound))
    room = (1 - 5 * info.eps) * root - rounding
    if not isinstance(room, Tensor):
        room = torch.full((), room, dtype=distance.dtype, device=distance.device)
    limit = room.clamp(min=info.tiny)
    return limit / distance.clamp(min=limit), distance <= root


def length(x: Tensor, dim: int | tuple[int, ...] = -1, keepdim: bool = False) -> Tensor:
    """Return ‖x‖, which can be differentiated twice, also at zero: PyTorch's own second derivative is NaN there.

    Zero counts as a number so small that its square is the smallest there is; nothing else changes.
    """
    return torch.linalg.vector_norm(x + _smallest(x), dim=dim, keepdim=keepdim)


def _smallest(x: Tensor) -> float:
    return float(torch.finfo(x.dtype).tiny ** 0.5)


def radial_projection(
    new: Tensor, old: Tensor, unit: Tensor, bound: Tensor | float, rounding: Tensor | float
) -> Tensor:
    """Return old + t·(new − old), the point nearest to ``new`` with ‖(x − old)/unit‖² ≤ ε.

    ``new`` comes back bit for bit where it obeys the bound.

    :param new: Predicted parameters, ``(*batch, d)``.
    :param old: Parameters of the old policy; broadcasts with ``new``.
    :param unit: Length of one unit of distance along each dimension; broadcasts with ``new``.
    :param bound: ε, a positive number or a tensor that broadcasts to the batch.
    :param rounding: What rounding ``old`` can change in units of distance; broadcasts to ``(*batch, 1)``.
    """
    step = new - old
    distance = length(step / unit, keepdim=True)
    t, inside = radial_weight(distance, column(bound), rounding)
    return torch.where(inside, new, torch.addcmul(old, t, step))


def column(bound: Tensor | float) -> Tensor | float:
    """Return one number per state as ``(*batch, 1)``, and a scalar as it is."""
    return bound.unsqueeze(-1) if isinstance(bound, Tensor) and bound.dim() > 0 else bound
