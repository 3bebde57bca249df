"""The square root of symmetric positive definite matrices, with a gradient that survives equal eigenvalues."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["spd_sqrt"]


class _SpdSqrt(torch.autograd.Function):
    """C = U diag(r) Uᵀ ↦ U diag(√r) Uᵀ.

    Backward is the Daleckii–Krein formula: in the eigenbasis the cotangent is multiplied, entry by entry, by
    the divided difference (√r_i − √r_j)/(r_i − r_j) = 1/(√r_i + √r_j), which has no pole at r_i = r_j.
    """

    @staticmethod
    def forward(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        roots = values.clamp(min=0).sqrt()
        return (vectors * roots.unsqueeze(-2)) @ vectors.mT, roots, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, roots, vectors = output
        ctx.mark_non_differentiable(roots, vectors)
        ctx.save_for_backward(roots, vectors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0]
        roots, vectors = ctx.saved_tensors
        tiny = torch.finfo(roots.dtype).tiny
        sums = (roots.unsqueeze(-1) + roots.unsqueeze(-2)).clamp(min=tiny)
        symmetric = 0.5 * (gradient + gradient.mT)
        return vectors @ ((vectors.mT @ symmetric @ vectors) / sums) @ vectors.mT


def spd_sqrt(matrix: Tensor) -> Tensor:
    """Return the symmetric square root of symmetric positive (semi-)definite matrices.

    :param matrix: ``(*batch, d, d)``; eigenvalues below zero, which rounding can produce, count as zero.
    :return: ``(*batch, d, d)``; differentiable, also where eigenvalues coincide.
    """
    return _SpdSqrt.apply(matrix)[0]
