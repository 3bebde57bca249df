"""The steps of a fused Adam without the calls around the kernel, which take longer than the kernel itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch as th
from torch import Tensor

from sb3_trl.steps.flat_adam import is_plain_adam

__all__ = ["step_function"]


def step_function(optimizer: th.optim.Optimizer) -> Callable[[], Any]:
    """Return what takes the optimiser's steps: ``optimizer.step``, or the same in less time for a plain fused Adam.

    Parameters, moments and numbers of steps are the optimiser's, bit for bit.

    :param optimizer: Any.
    """
    has_hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if not is_plain_adam(optimizer) or not optimizer.param_groups[0]["fused"] or has_hooks:
        return optimizer.step
    by_dtype: dict[th.dtype, list[Tensor]] = {}
    for parameter in optimizer.param_groups[0]["params"]:
        by_dtype.setdefault(parameter.dtype, []).append(parameter)

    @th.no_grad()
    def step() -> None:
        trained = [[p for p in parameters if p.grad is not None] for parameters in by_dtype.values()]
        states = [[optimizer.state[p] for p in parameters] for parameters in trained]
        if not all(map(all, states)):
            optimizer.step()  # which creates the moments
            return
        (group,) = optimizer.param_groups
        beta1, beta2 = group["betas"]
        constants = {"lr": float(group["lr"]), "beta1": beta1, "beta2": beta2, "eps": group["eps"], "weight_decay": 0.0}
        for parameters, own in zip(trained, states, strict=True):
            means, squares, steps = ([state[key] for state in own] for key in ("exp_avg", "exp_avg_sq", "step"))
            if parameters:
                th._foreach_add_(steps, 1)
                gradients = [p.grad for p in parameters if p.grad is not None]
                th._fused_adam_(
                    parameters, gradients, means, squares, [], steps, **constants, amsgrad=False, maximize=False
                )

    return step
