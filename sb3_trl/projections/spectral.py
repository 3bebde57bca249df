"""Square roots of symmetric matrices, with a gradient that survives equal eigenvalues."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["spd_sqrt", "sqrt_difference"]


def spd_sqrt(matrix: Tensor) -> Tensor:
    """Return the symmetric square root A^½ of symmetric positive (semi-)definite matrices.

    :param matrix: ``(*batch, d, d)``; eigenvalues below zero, which rounding can produce, count as zero.
    :return: ``(*batch, d, d)``, differentiable, also where eigenvalues coincide.
    """
    return _shifted_sqrt(matrix, 0.0)


def sqrt_difference(difference: Tensor) -> Tensor:
    """Return (I + H)^½ − I for symmetric H, without losing digits where H is small; zero for H = 0.

    :param difference: H, ``(*batch, d, d)``; eigenvalues below −1 count as −1.
    :return: ``(*batch, d, d)``, differentiable, also where eigenvalues coincide.
    """
    return _shifted_sqrt(difference, 1.0)


def _shifted_sqrt(matrix: Tensor, shift: float) -> Tensor:
    """f(A) for f(a) = √(s + a) − √s, and s = 0 or 1.

    The gradient is the Daleckii–Krein formula: in the eigenbasis of A, dA is multiplied, entry by entry, by the
    divided difference f[aᵢ, aⱼ] = 1/(√(s + aᵢ) + √(s + aⱼ)), which has no pole at aᵢ = aⱼ. It is written as a
    linear term of value zero, which every transformation of PyTorch understands. Roots that are lost in
    rounding (below √eps of the largest) count as that large.
    """
    tiny = torch.finfo(matrix.dtype).tiny
    with torch.no_grad():
        # Where the matrix is not finite, ``zero`` makes the result NaN; the eigensolver would raise.
        values, vectors = torch.linalg.eigh(torch.nan_to_num(matrix, 0.0, 0.0, 0.0))
        values = values.clamp(min=-shift)
        roots = (values + shift).sqrt()
        changes = values / (roots + shift).clamp(min=tiny)
        floor = (torch.finfo(matrix.dtype).eps ** 0.5 * roots.amax(-1, keepdim=True)).clamp(min=tiny)
        floored = torch.maximum(roots, floor)
        weights = 1 / (floored.unsqueeze(-1) + floored.unsqueeze(-2))
        result = (vectors * changes.unsqueeze(-2)) @ vectors.mT
    zero = matrix - matrix.detach()
    return result + vectors @ (weights * (vectors.mT @ zero @ vectors)) @ vectors.mT
