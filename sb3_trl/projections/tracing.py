"""Whether code may depend on the numbers in a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["can_branch"]


def can_branch(tensor: Tensor) -> bool:
    """Return whether Python may look at the numbers in ``tensor``, and for free.

    True on the CPU; False on an accelerator, which would have to be waited for, inside ``torch.compile``, and
    inside the transformations of ``torch.func``. Shortcuts are taken where it is True; results do not depend
    on it.
    """
    if torch.compiler.is_compiling() or tensor.device.type != "cpu":
        return False
    return not torch._C._are_functorch_transforms_active()
