"""First derivatives, in forward and reverse mode, of values that are found without differentiation.

What a solver or an eigendecomposition finds is a number to PyTorch, and its derivative is known from a formula.
``with_derivative`` puts the two together. The formula treats everything but the differential as a constant, so
that derivatives of second order would be wrong: they raise an error.

Find such values from detached inputs: ``torch.no_grad`` lets the tangents of forward mode through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sb3_trl.projections.tracing import is_plain

__all__ = ["Derivative", "constant", "with_derivative"]


@dataclass(frozen=True)
class Derivative:
    """A linear map, given by how it acts and how its transpose acts.

    :param quantity: What has this derivative, as it is called in the error message.
    :param forward: Maps dx, and the constants, to dy.
    :param transpose: Maps a gradient with respect to y, and the constants, to that with respect to x.
    """

    quantity: str
    forward: Callable[..., Tensor]
    transpose: Callable[..., Tensor]


def constant(value: Any, like: Tensor | None = None) -> Any:
    """Return a tensor without its derivatives, of either mode, and anything else as it is.

    :param like: What it is used with: a tensor is brought to its device.
    """
    if not isinstance(value, Tensor):
        return value
    return value.detach() if like is None or like.device == value.device else value.detach().to(like.device)


def with_derivative(value: Tensor, x: Tensor, derivative: Derivative, *constants: Tensor) -> Tensor:
    """Return ``value`` with a first derivative with respect to x.

    Works in every mode of differentiation, under ``vmap`` and in compiled code. Derivatives of second order raise a
    ``RuntimeError``; in compiled code, two nested transformations that differentiate do.

    :param value: y, detached.
    :param x: What it depends on; broadcasts to y.
    :param derivative: The linear map from dx to dy. Where x broadcasts to y, its transpose need not add up.
    :param constants: What the linear map needs, detached.
    """
    if torch.compiler.is_compiling():
        # torch.compile knows no forward mode of a Function, and can lose its gradient: ordinary operations.
        _check_nesting(derivative.quantity)
        return value + derivative.forward(x - x.detach(), *constants).to(value.dtype)
    function = _Reverse if is_plain() else _EveryMode
    result: Tensor = function.apply(derivative, value, x, *constants)
    return result


class _EveryMode(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(derivative: Derivative, value: Tensor, x: Tensor, *constants: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.derivative, value, *tensors = inputs
        ctx.dtype = value.dtype
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *constants = ctx.saved_tensors
        result = ctx.derivative.transpose(gradient, *constants).to(x.dtype)
        if result.shape != x.shape:
            result = result.sum_to_size(x.shape)
        if torch.is_grad_enabled() or not is_plain():  # it may be differentiated
            result = _Once.apply(ctx.derivative.quantity, result, x)
        return None, None, result, *[None] * len(constants)

    @staticmethod
    def jvp(ctx: Any, _: None, __: Tensor | None, step: Tensor, *___: Tensor | None) -> Tensor:
        x, *constants = ctx.saved_tensors
        result: Tensor = ctx.derivative.forward(step, *constants).to(ctx.dtype)
        once: Tensor = _Once.apply(ctx.derivative.quantity, result, x)
        return once


class _Reverse(torch.autograd.Function):
    """The same without forward mode and ``vmap``, in the form that PyTorch calls without delay."""

    @staticmethod
    def forward(ctx: Any, derivative: Derivative, value: Tensor, *tensors: Tensor) -> Tensor:
        ctx.derivative = derivative
        ctx.save_for_backward(*tensors)
        return value.view_as(value)

    backward = _EveryMode.backward


class _Once(torch.autograd.Function):
    """A derivative at x that can itself be differentiated in what it is linear in, but not in x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(quantity: str, derivative: Tensor, x: Tensor) -> Tensor:
        return derivative.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.quantity = inputs[0]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.needs_input_grad[2]:
            raise _second_order(ctx.quantity)
        return None, gradient, None

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor | None, step: Tensor | None) -> Tensor | None:
        if step is not None:
            raise _second_order(ctx.quantity)
        return tangent


def _check_nesting(quantity: str) -> None:
    """Raise if two transformations that differentiate are active; runs when code is compiled."""
    kinds = torch._C._functorch.TransformType
    active = torch._C._functorch.get_interpreter_stack() or []
    if sum(level.key() in (kinds.Grad, kinds.Jvp) for level in active) > 1:
        raise _second_order(quantity)


# What torch.compiler.assume_constant_result does: that function imports all of torch.compile, which takes a second.
_check_nesting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _second_order(quantity: str) -> RuntimeError:
    return RuntimeError(
        f"A derivative of second order was asked for, but {quantity} can be differentiated once: detach its gradient, "
        "or take finite differences of it. The projections of means, W2 and Frobenius of diagonal covariances and "
        "Frobenius of full ones can be differentiated twice. If only a first derivative is wanted, take it with "
        "torch.func.jvp or torch.func.vjp: torch.autograd.functional.jvp differentiates twice."
    )
