"""Batched matrices, ``(*batch, d, d)``."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["identity_like", "inverse_tril", "matvec", "relative_size"]


def identity_like(matrix: Tensor) -> Tensor:
    """Return I, ``(d, d)``, in the dtype and on the device of ``matrix``."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def inverse_tril(tril: Tensor) -> Tensor:
    """Return L⁻¹ for lower-triangular L."""
    return torch.linalg.solve_triangular(tril, identity_like(tril).expand_as(tril), upper=False)


def matvec(matrix: Tensor, x: Tensor) -> Tensor:
    """Return Ax for ``matrix`` ``(*batch, d, d)`` or ``(d, d)`` and vectors ``x``, ``(*batch, d)``."""
    return x @ matrix.mT if matrix.dim() == 2 else (matrix @ x.unsqueeze(-1)).squeeze(-1)


def relative_size(tril: Tensor, inverse: Tensor) -> Tensor:
    """‖ |L⁻¹| |L| ‖_F: machine epsilon times this is what rounding L changes in its own metric."""
    return torch.linalg.matrix_norm(inverse.float().abs_() @ tril.float().abs_()).to(tril.dtype)
