"""The closed-form projection onto a ball, shared by the mean, Wasserstein and Frobenius projections."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["radial_projection", "radial_weight"]


def radial_weight(squared_distance: Tensor, bound: Tensor | float, rounding: Tensor | float = 0.0) -> Tensor:
    """Return t = 1/√max(D²/ε, 1) ∈ [0, 1], the share of the step that the bound allows (eqs 6, 7, 9).

    In the paper's multiplier η: t = 1/(1 + η). Exactly 1, with zero gradient, where D² ≤ ε. Outside, t is
    shortened by what rounding the projected parameters to floating point can add to their distance, so that
    the numbers themselves obey the bound; it is 0 where the bound is finer than their last digit.

    :param squared_distance: D², shape ``(*batch,)``.
    :param bound: ε, a positive number or a tensor that broadcasts to the batch.
    :param rounding: What rounding the result can add to D (not squared).
    """
    t = torch.rsqrt(torch.clamp(squared_distance / bound, min=1))
    with torch.no_grad():
        epsilon = torch.as_tensor(bound, dtype=t.dtype, device=t.device)
        margin = rounding / epsilon.sqrt() + 9 * torch.finfo(t.dtype).eps
        kept = torch.where(squared_distance <= epsilon, torch.ones_like(t), (1 - margin).clamp(min=0))
    return t * kept


def radial_projection(new: Tensor, old: Tensor, unit: Tensor, bound: Tensor | float) -> Tensor:
    """Return old + t·(new − old), the point nearest to ``new`` with ‖(x − old)/unit‖² ≤ ε.

    ``new`` comes back bit for bit where it obeys the bound.

    :param new: Predicted parameters, ``(*batch, d)``.
    :param old: Parameters of the old policy; broadcasts with ``new``.
    :param unit: Length of one unit of distance along each dimension; broadcasts with ``new``.
    :param bound: ε, a positive number or a tensor that broadcasts to the batch.
    """
    step = new - old
    rounding = torch.finfo(new.dtype).eps * torch.linalg.vector_norm((old / unit).detach(), dim=-1)
    t = radial_weight((step / unit).square().sum(-1), bound, rounding).unsqueeze(-1)
    return torch.where(t == 1, new, old + t * step)
