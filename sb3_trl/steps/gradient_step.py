"""Gradient steps on a pure loss: by ordinary autograd, or compiled from forward pass to Adam as one function."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import torch as th
from torch import Tensor, nn
from torch.func import grad

from sb3_trl.policies.direct import direct
from sb3_trl.random_state import preserved_random_state
from sb3_trl.steps.compilation import Compiled, Result, Varying, pure_forward, warn_uncompiled
from sb3_trl.steps.flat_adam import Flat, Layout, State, adam, clipped, step_sizes
from sb3_trl.steps.fused_adam import step_function
from sb3_trl.table import Table

__all__ = ["CompiledStep", "EagerStep", "Loss", "StepLoss", "pure_step", "trained_parameters", "variant_of"]

#: A scalar to minimise, and scalars to log.
Loss: TypeAlias = tuple[Tensor, dict[str, Tensor]]
#: ``loss(forward, *minibatch, *extra)``.
StepLoss: TypeAlias = Callable[..., Loss]
#: Maps the extra tensors and the scalars of a step to what the extra tensors are after it.
After: TypeAlias = Callable[[Flat, dict[str, Tensor]], Flat]


class EagerStep:
    """A gradient step by autograd and the optimiser.

    What the loss does not reach, or what is frozen (``requires_grad=False``), stays as it is.

    :param forward: The forward pass, a module.
    :param loss: ``loss(forward, *minibatch)``, which returns the scalar to minimise and a dict of scalars to log.
    :param optimizer: Holds the parameters to change.
    :param max_grad_norm: Gradient clipping, ``None`` for none.
    :param extra: Tensors that the loss takes besides, and that steps change by a rule of their own, in place.
    :param after: That rule.
    """

    def __init__(
        self,
        forward: nn.Module,
        loss: StepLoss,
        optimizer: th.optim.Optimizer,
        max_grad_norm: float | None,
        extra: Flat = (),
        after: After = lambda extra, scalars: extra,
    ) -> None:
        self.forward = forward
        self.loss = loss
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.extra = extra
        self.after = after
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._update = step_function(optimizer)
        self._forward = direct(forward)

    def __call__(self, data: Table, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Take one step and return the scalars to log.

        :param data: A table whose ``part`` is the loss's arguments.
        :param rows: The minibatch, one of its parts.
        """
        loss, scalars = self.loss(self._forward, *data.part(rows), *self.extra)
        for p in self.parameters:
            p.grad = None
        if loss.requires_grad:  # else all parameters are frozen
            loss.backward()
            if self.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
            self._update()
        scalars = {key: scalar.detach() for key, scalar in scalars.items()}
        for tensor, changed in zip(self.extra, self.after(self.extra, scalars), strict=True):
            tensor.copy_(changed)
        return scalars

    def epoch(self, data: Table, batch_size: int) -> list[dict[str, Tensor]]:
        """Take a step on every minibatch of the data, shuffled, and return the scalars of each."""
        return [self(data, rows) for rows in data.shuffled().split(batch_size)]

    def finish(self) -> None:
        """Leave parameters and optimiser in the state that these steps led to."""

    def forget(self) -> None:
        """Let go of the data of the last step."""


@dataclass
class Variant:
    """A compiled step for one set of trained parameters and one kind of data.

    :param layout: Where the trained parameters lie.
    :param function: The compiled function, once there is one.
    """

    layout: Layout
    function: Compiled | None = None


class CompiledStep(EagerStep):
    """The same step as one compiled function: forward pass, gradient, clipping and Adam.

    While steps are taken, parameters and moments are held in one vector; ``finish`` hands them back to the module
    and its optimiser, which can be saved, loaded and used for other steps in between. Learning rate, gradient clipping
    and minibatch are inputs, so nothing is compiled again while they change. Which parameters are trained is looked at
    with every new table; another choice is compiled once more. A minibatch of another size takes the eager path, and
    so does everything after a failed compilation, with one warning.

    :param forward: As in ``EagerStep``.
    :param loss: As in ``EagerStep``.
    :param optimizer: One that ``is_plain_adam``.
    :param max_grad_norm: As in ``EagerStep``; may be set to another number between two tables.
    :param batch_size: The size to compile for.
    :param extra: As in ``EagerStep``.
    :param after: As in ``EagerStep``.
    """

    optimizer: th.optim.Adam

    def __init__(
        self,
        forward: nn.Module,
        loss: StepLoss,
        optimizer: th.optim.Adam,
        max_grad_norm: float | None,
        batch_size: int,
        extra: Flat = (),
        after: After = lambda extra, scalars: extra,
    ) -> None:
        super().__init__(forward, loss, optimizer, max_grad_norm, extra, after)
        self.batch_size = batch_size
        self._forward = forward  # layers may be replaced while this step lives
        self._variants: dict[Hashable, Variant] = {}
        self._variant: Variant | None = None
        self._state: Sequence[Tensor] | None = None
        self._data: Table | None = None
        self._fixed: Any = None
        self._is_broken = False

    @property
    def is_compiled(self) -> bool:
        """Whether the function is there, and works."""
        return any(variant.function is not None for variant in self._variants.values())

    def is_of(self, forward: Any, optimizer: th.optim.Optimizer) -> bool:
        """Return whether these are the step's network, perhaps as another object, and its optimiser."""
        return self.optimizer is optimizer and getattr(self.forward, "policy", None) is forward.policy

    def __call__(self, data: Table, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Take one step without the compiled function, and return the scalars to log."""
        self.finish()
        return super().__call__(data, rows)

    def epoch(self, data: Table, batch_size: int) -> list[dict[str, Tensor]]:
        """Take a step on every minibatch of the data, shuffled, and return the scalars of each."""
        return [self.take(data, index) for index in data.random_order().split(batch_size)]

    def take(self, data: Table, index: Tensor) -> dict[str, Tensor]:
        """Take one step on some rows of the data, and return the scalars to log.

        :param data: A table, whose rows are picked inside the compiled function.
        :param index: Numbers of rows, ``(batch_size,)``.
        """
        if self._is_broken or len(index) != self.batch_size:
            return self(data, data.at(index).rows)
        is_new = data is not self._data
        if is_new:  # what compiled code relies on may have changed, too
            self._look_at(data, index)
        assert self._variant is not None
        if not self._variant.layout.named:
            return self(data, data.at(index).rows)
        if self._state is None:
            self._begin(self._variant.layout)
        assert self._state is not None
        varying = (*self._state, next(self._sizes), index)
        try:
            if is_new:
                with preserved_random_state(index.device):  # compiling must not change it
                    result = self._compiled(self._variant, data)(varying, self._fixed)
            else:
                result = self._compiled(self._variant, data)(varying, self._fixed)
        except Exception as error:
            self._give_up(error)
            return self(data, data.at(index).rows)
        self._state, scalars = result
        self._n_taken += 1
        return scalars

    def _look_at(self, data: Table, index: Tensor) -> None:
        """Choose the variant for what is trained now, on data of this kind."""
        self.finish()
        limit, device = self.max_grad_norm, self.parameters[0].device
        key = variant_of(data, self.parameters, limit, self.extra)
        if key not in self._variants:
            named = trained_parameters(self, data.part(data.at(index).rows))
            self._variants[key] = Variant(Layout(named))
        self._variant, self._data = self._variants[key], data
        norm = None if limit is None else th.tensor(limit, dtype=th.float64, device=device)
        self._fixed = (data.rows, data.shared, norm, ())

    def _compiled(self, variant: Variant, data: Table) -> Compiled:
        if variant.function is None:
            variant.function = Compiled(pure_step(self.forward, self.loss, variant.layout, data.build, self.after))
        return variant.function

    def _give_up(self, error: Exception) -> None:
        """Take eager steps from now on, and say so."""
        self._is_broken = True
        self._variants.clear()
        self.forget()
        warn_uncompiled(error)

    def _begin(self, layout: Layout) -> None:
        """Take over parameters and moments."""
        state, n_steps = layout.read_state(self.optimizer)
        self._state, self._n_taken, self._began_with = state._replace(extra=self.extra).tensors, 0, layout
        self._sizes = chain.from_iterable(step_sizes(self.optimizer, n_steps, layout.dtype))

    def finish(self) -> None:
        """Hand parameters, moments and the numbers of steps back to the module and its optimiser."""
        if self._state is not None:
            layout, state, self._state = self._began_with, self._state, None
            new = State.of(state, len(layout.groups))
            layout.write_state(self.optimizer, new, self._n_taken)
            for tensor, changed in zip(self.extra, new.extra, strict=True):
                tensor.copy_(changed)

    def forget(self) -> None:
        """Let go of the data of the last step; whether compiled code still fits is looked at in the next one."""
        self._data = self._fixed = None
        for variant in self._variants.values():
            if variant.function is not None:
                variant.function.forget()


def variant_of(data: Table, parameters: Sequence[Tensor], max_grad_norm: float | None, extra: Flat = ()) -> Hashable:
    """Return what a step has to be compiled once more for, where tensors alone would be inputs."""
    shapes = tuple(tensor.shape for tensor in extra)
    return data.kind, tuple(p.requires_grad for p in parameters), max_grad_norm is None, shapes


def trained_parameters(step: EagerStep, minibatch: tuple[Any, ...]) -> dict[str, nn.Parameter]:
    """Return, by name, the parameters that a step changes: those of its optimiser that its loss has a gradient for."""
    held = {id(p) for p in step.parameters if p.requires_grad}
    named = {name: p for name, p in step.forward.named_parameters() if id(p) in held}
    with preserved_random_state(step.parameters[0].device):
        loss, _ = step.loss(step.forward, *minibatch, *step.extra)
    if not loss.requires_grad or not named:
        return {}
    gradients = th.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: p for (name, p), gradient in zip(named.items(), gradients, strict=True) if gradient is not None}


def pure_step(
    forward: nn.Module,
    loss: StepLoss,
    layout: Layout,
    build: Callable[[Sequence[Tensor], Sequence[Tensor]], Any],
    after: After,
    frozen: Sequence[str] = (),
) -> Callable[[Varying, Any], Result]:
    """Return the step as a function of tensors alone: what varies and what is fixed → (new state, scalars).

    Step to step, the state varies, Adam's step sizes, and the numbers of the minibatch's rows, in this order. The
    table's rows and shared tensors are fixed, the gradient's largest norm, ``None`` for any, and the parameters that
    are named in ``frozen``; others that are not trained are those of ``forward``.
    """

    network = pure_forward(forward)

    def objective(parameters: dict[str, Tensor], others: dict[str, Tensor], minibatch: tuple[Any, ...]) -> Loss:
        def call(*inputs: Any) -> Any:
            return network(parameters | others, *inputs)

        value, scalars = loss(call, *minibatch)
        return value, {key: scalar.detach() for key, scalar in scalars.items()}

    def step(varying: Varying, fixed: tuple[Any, ...]) -> Result:
        (*tensors, sizes, index), (rows, shared, max_grad_norm, others) = varying, fixed
        state = State.of(tensors, len(layout.groups))
        minibatch = build([tensor[index] for tensor in rows], shared)
        parameters = layout.unflatten(state.parameters)
        own = dict(zip(frozen, others, strict=True))
        gradients, scalars = grad(objective, has_aux=True)(parameters, own, (*minibatch, *state.extra))
        if max_grad_norm is not None:
            gradients = clipped(gradients, max_grad_norm)
        new = adam(state, gradients, sizes, layout)._replace(extra=after(state.extra, scalars))
        return new.tensors, scalars

    return step
