"""What is done to the code that runs: may it depend on the numbers in a tensor, how is it differentiated?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["can_branch", "is_plain"]


def is_plain() -> bool:
    """Return whether operations are run one by one, and differentiated by ``backward`` if at all.

    Not inside ``torch.compile``, the transformations of ``torch.func``, or a level of forward-mode differentiation.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return forward_ad._current_level < 0


def can_branch(tensor: Tensor) -> bool:
    """Return whether Python may look at the numbers in ``tensor``, and for free.

    True on the CPU; False on an accelerator, which would have to be waited for, inside ``torch.compile``, and
    inside the transformations of ``torch.func``. Shortcuts are taken where it is True; results do not depend
    on it.
    """
    if not tensor.is_cpu or torch.compiler.is_compiling():
        return False
    return not torch._C._are_functorch_transforms_active()
