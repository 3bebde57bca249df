"""The mathematics of penalised policy optimisation, free of plumbing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["halving_search"]


@torch.no_grad()
def halving_search(
    parameters: Sequence[Tensor],
    old: Sequence[Tensor],
    is_feasible: Callable[[], bool],
    max_halvings: int = 30,
) -> float:
    """Move ``parameters`` back towards ``old`` until the policy they make is feasible.

    θ(λ) = θ_old + λ(θ − θ_old) is tried at λ = 1, ½, ¼, …; parameters are left at the first feasible one, or
    at θ_old, where every divergence is 0, if none is. Always ends. A λ at which a parameter is not finite
    counts as infeasible.

    :param parameters: θ, changed in place.
    :param old: θ_old, of the same shapes.
    :param is_feasible: Whether the policy with the current values of ``parameters`` obeys its constraints.
    :param max_halvings: How often λ is halved before it becomes 0.
    :return: λ.
    """
    target = [p.clone() for p in parameters]
    scale = 1.0
    if all(bool(p.isfinite().all()) for p in target):
        for _ in range(max_halvings + 1):
            for p, start, end in zip(parameters, old, target, strict=True):
                p.copy_(torch.lerp(start, end, scale) if scale < 1 else end)
            if is_feasible():
                return scale
            scale /= 2
    for p, start in zip(parameters, old, strict=True):
        p.copy_(start)
    return 0.0
