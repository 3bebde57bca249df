"""Gradient steps on a pure loss: by ordinary autograd, or compiled from forward pass to Adam as one function."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import torch as th
from torch import Tensor, nn
from torch.func import functional_call, grad

from sb3_trl.rollout import n_rows

__all__ = ["CompiledStep", "EagerStep", "Loss", "StepLoss", "can_compile"]

#: A scalar to minimise, and scalars to log.
Loss: TypeAlias = tuple[Tensor, dict[str, Tensor]]
#: ``loss(forward, *minibatch)``.
StepLoss: TypeAlias = Callable[..., Loss]


class EagerStep:
    """A gradient step by autograd and the optimiser.

    :param forward: The forward pass, a module.
    :param loss: ``loss(forward, *minibatch)``, which returns the scalar to minimise and a dict of scalars to log.
    :param optimizer: Holds the parameters to change.
    :param max_grad_norm: Gradient clipping, ``None`` for none.
    """

    def __init__(
        self, forward: nn.Module, loss: StepLoss, optimizer: th.optim.Optimizer, max_grad_norm: float | None
    ) -> None:
        self.forward = forward
        self.loss = loss
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, *minibatch: Any) -> dict[str, Tensor]:
        """Take one step and return the scalars to log."""
        loss, scalars = self.loss(self.forward, *minibatch)
        self.optimizer.zero_grad()
        loss.backward()
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        return scalars

    def finish(self) -> None:
        """Leave the optimiser in the state that these steps led to."""


class CompiledStep(EagerStep):
    """The same step as one compiled function: forward pass, gradient, clipping and Adam.

    The optimiser stays the owner of the parameters and their moments, which are updated in place: it can be
    saved, loaded and used for other steps in between. Learning rate and minibatch are inputs, so nothing is
    compiled again while they change. A minibatch of another size takes the eager path, and so does everything
    after a failed compilation, with one warning.

    :param forward: As in ``EagerStep``.
    :param loss: As in ``EagerStep``.
    :param optimizer: One that ``can_compile``.
    :param max_grad_norm: As in ``EagerStep``.
    :param batch_size: The size to compile for.
    """

    optimizer: th.optim.Adam

    def __init__(
        self,
        forward: nn.Module,
        loss: StepLoss,
        optimizer: th.optim.Adam,
        max_grad_norm: float | None,
        batch_size: int,
    ) -> None:
        super().__init__(forward, loss, optimizer, max_grad_norm)
        held = {id(p) for p in self.parameters}
        self.names = {name: p for name, p in forward.named_parameters() if id(p) in held}
        self.batch_size = batch_size
        self._tensors: tuple[Any, ...] | None = None
        self._function = th.compile(_make_step(forward, loss, max_grad_norm), fullgraph=True, dynamic=False)
        self._is_compiled = self._is_broken = False

    def __call__(self, *minibatch: Any) -> dict[str, Tensor]:
        """Take one step and return the scalars to log."""
        if self._is_broken or n_rows(minibatch) != self.batch_size:
            self.finish()
            return super().__call__(*minibatch)
        if self._tensors is None:
            self._tensors = self._collect()
        if self._is_compiled:
            return self._function(*self._tensors, *minibatch)
        return self._compile_and_step(*minibatch)

    def _compile_and_step(self, *minibatch: Any) -> dict[str, Tensor]:
        """Take the first step, which compiles the function and leaves the random streams as they were."""
        assert self._tensors is not None
        random_state = th.get_rng_state()
        try:
            scalars = self._function(*self._tensors, *minibatch)
        except Exception as error:
            self._is_broken = True
            _warn(error)
            return self(*minibatch)
        finally:
            th.set_rng_state(random_state)
        self._is_compiled = True
        return scalars

    def finish(self) -> None:
        """Hand the number of steps back to the optimiser."""
        if self._tensors is not None:
            for p in self.names.values():
                self.optimizer.state[p]["step"].copy_(self._tensors[3][0])
            self._tensors = None

    def _collect(self) -> tuple[Any, ...]:
        """Return what the compiled function changes: parameters, moments, number of steps; and Adam's settings."""
        (group,) = self.optimizer.param_groups
        for p in self.names.values():
            if not self.optimizer.state[p]:
                on_device = group["fused"] or group["capturable"]
                self.optimizer.state[p] = {
                    "step": th.zeros((), dtype=th.float32, device=p.device if on_device else "cpu"),
                    "exp_avg": th.zeros_like(p),
                    "exp_avg_sq": th.zeros_like(p),
                }
        states = {name: self.optimizer.state[p] for name, p in self.names.items()}
        device = group["params"][0].device
        settings = [float(group["lr"]), *group["betas"], group["eps"]]
        return (
            {name: p.detach() for name, p in self.names.items()},
            {name: state["exp_avg"] for name, state in states.items()},
            {name: state["exp_avg_sq"] for name, state in states.items()},
            # One element, not a scalar: compiled functions do not write to scalar float64 inputs (torch 2.13).
            next(iter(states.values()))["step"].to(device, th.float64, copy=True).reshape(1),
            th.tensor(settings, dtype=th.float64, device=device),
        )


def can_compile(optimizer: th.optim.Optimizer) -> bool:
    """Return whether an optimiser's step can be part of the compiled function: plain Adam with one group."""
    if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1:
        return False
    (group,) = optimizer.param_groups
    return not (group["weight_decay"] or group["amsgrad"] or group["maximize"])


def _make_step(forward: nn.Module, loss: StepLoss, max_grad_norm: float | None) -> Callable[..., Any]:
    """Return the step as a function of tensors alone."""

    def objective(parameters: dict[str, Tensor], minibatch: tuple[Any, ...]) -> Loss:
        def call(*inputs: Any) -> Any:
            return functional_call(forward, parameters, inputs)

        value, scalars = loss(call, *minibatch)
        return value, {key: scalar.detach() for key, scalar in scalars.items()}

    def step(
        parameters: dict[str, Tensor],
        means: dict[str, Tensor],
        squares: dict[str, Tensor],
        n_steps: Tensor,
        adam: Tensor,
        *minibatch: Any,
    ) -> dict[str, Tensor]:
        gradients, scalars = grad(objective, has_aux=True)(parameters, minibatch)
        if max_grad_norm is not None:
            norm = th.stack([g.square().sum().to(n_steps.dtype) for g in gradients.values()]).sum().sqrt()
            factor = (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            gradients = {name: g * factor.to(g.dtype) for name, g in gradients.items()}
        n_steps.add_(1)
        for name, parameter in parameters.items():
            _adam(parameter, gradients[name], means[name], squares[name], n_steps[0], adam)
        return scalars

    return step


def _adam(parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, n_steps: Tensor, adam: Tensor) -> None:
    """Kingma & Ba's step, in place, in the arithmetic of ``torch.optim.Adam``."""
    rate, beta1, beta2, eps = adam.unbind()
    size = (rate / (1 - beta1**n_steps)).to(gradient.dtype)
    correction = (1 - beta2**n_steps).sqrt().to(gradient.dtype)
    mean.copy_(mean + (1 - beta1).to(gradient.dtype) * (gradient - mean))
    square.copy_(beta2.to(gradient.dtype) * square + (1 - beta2).to(gradient.dtype) * gradient * gradient)
    parameter.sub_(size * mean / (square.sqrt() / correction + eps.to(gradient.dtype)))


def _warn(error: Exception) -> None:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    warnings.warn(
        f"The training step could not be compiled ({first_line}): training goes on without compilation, slower. "
        "compile=False silences this.",
        stacklevel=4,
    )
