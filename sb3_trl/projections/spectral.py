"""Square roots of symmetric matrices, with a gradient that survives equal eigenvalues."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_trl.projections.derivatives import Derivative, with_derivative

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
    divided difference f[aᵢ, aⱼ] = 1/(√(s + aᵢ) + √(s + aⱼ)), which has no pole at aᵢ = aⱼ. Roots that are lost in
    rounding (below √eps of the largest) count as that large.
    """
    tiny = torch.finfo(matrix.dtype).tiny
    fixed = matrix.detach()
    with torch.no_grad():
        values, vectors = torch.linalg.eigh(torch.nan_to_num(fixed, 0.0, 0.0, 0.0))
        values = values.clamp(min=-shift)
        roots = (values + shift).sqrt()
        changes = values / (roots + shift).clamp(min=tiny)
        floor = (torch.finfo(matrix.dtype).eps ** 0.5 * roots.amax(-1, keepdim=True)).clamp(min=tiny)
        floored = torch.maximum(roots, floor)
        weights = 1 / (floored.unsqueeze(-1) + floored.unsqueeze(-2))
        # The last term is zero, and NaN where the matrix is not finite: the eigensolver would raise.
        result = (vectors * changes.unsqueeze(-2)) @ vectors.mT + (fixed - fixed)
    return with_derivative(result, matrix, _SQUARE_ROOT, vectors, weights)


def _in_eigenbasis(step: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
    """Multiply a matrix, in the eigenbasis, by ``weights``: a symmetric linear map."""
    return vectors @ (weights * (vectors.mT @ step @ vectors)) @ vectors.mT


_SQUARE_ROOT = Derivative("the square root of a matrix", _in_eigenbasis, _in_eigenbasis)
