"""Gradient steps on a pure loss: by ordinary autograd, or compiled from forward pass to Adam as one function."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias

import torch as th
from torch import Tensor, nn
from torch.func import functional_call, grad

from sb3_trl.rollout import Table

__all__ = ["CompiledStep", "EagerStep", "Layout", "Loss", "State", "StepLoss", "can_compile", "pure_step"]

#: A scalar to minimise, and scalars to log.
Loss: TypeAlias = tuple[Tensor, dict[str, Tensor]]
#: ``loss(forward, *minibatch, *extra)``.
StepLoss: TypeAlias = Callable[..., Loss]
#: Tensors of one dtype each.
Flat: TypeAlias = tuple[Tensor, ...]
#: Maps the extra tensors and the scalars of a step to what the extra tensors are after it.
After: TypeAlias = Callable[[Flat, dict[str, Tensor]], Flat]


class EagerStep:
    """A gradient step by autograd and the optimiser.

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

    def __call__(self, data: Table, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Take one step and return the scalars to log.

        :param data: A table whose ``part`` is the loss's arguments.
        :param rows: The minibatch, one of its parts.
        """
        loss, scalars = self.loss(self.forward, *data.part(rows), *self.extra)
        self.optimizer.zero_grad()
        loss.backward()
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        scalars = {key: scalar.detach() for key, scalar in scalars.items()}
        for tensor, changed in zip(self.extra, self.after(self.extra, scalars), strict=True):
            tensor.copy_(changed)
        return scalars

    def epoch(self, data: Table, batch_size: int) -> list[dict[str, Tensor]]:
        """Take a step on every minibatch of the data, shuffled, and return the scalars of each."""
        return [self(data, rows) for rows in data.shuffled().split(batch_size)]

    def finish(self) -> None:
        """Leave parameters and optimiser in the state that these steps led to."""


class CompiledStep(EagerStep):
    """The same step as one compiled function: forward pass, gradient, clipping and Adam.

    While steps are taken, parameters and moments are held in one vector; ``finish`` hands them back to the module
    and its optimiser, which can be saved, loaded and used for other steps in between. Learning rate and minibatch
    are inputs, so nothing is compiled again while they change. A minibatch of another size takes the eager path,
    and so does everything after a failed compilation, with one warning.

    :param forward: As in ``EagerStep``.
    :param loss: As in ``EagerStep``.
    :param optimizer: One that ``can_compile``.
    :param max_grad_norm: As in ``EagerStep``.
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
        self._layout: Layout | None = None
        self._state: State | None = None
        self._function: Callable[..., dict[str, Tensor]] | None = None
        self._is_compiled = self._is_broken = False

    def __call__(self, data: Table, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Take one step and return the scalars to log."""
        if self._is_broken or len(rows[0]) != self.batch_size:
            self.finish()
            return super().__call__(data, rows)
        if self._layout is None:
            self._layout = Layout(trained_parameters(self, data.part(rows)))
        if self._state is None:
            self._state = self._layout.read_state(self.optimizer)._replace(extra=self.extra)
            self._settings = adam_settings(self.optimizer)
        if self._is_compiled:
            assert self._function is not None
            return self._function(self._state, self._settings, rows, data.shared)
        return self._compile_and_step(data, rows)

    def epoch(self, data: Table, batch_size: int) -> list[dict[str, Tensor]]:
        """Take a step on every minibatch of the data, shuffled, and return the scalars of each.

        What the compiled function relies on is checked in the first step of the epoch, and holds for the others.
        """
        first, *others = data.shuffled().split(batch_size)
        scalars = [self(data, first)]
        with th.compiler.set_stance(skip_guard_eval_unsafe=self._is_compiled):
            return scalars + [self(data, rows) for rows in others]

    def _compile_and_step(self, data: Table, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Take the first step, which compiles the function and leaves the random streams as they were."""
        random_state = th.get_rng_state()
        try:
            assert self._layout is not None
            step = pure_step(self.forward, self.loss, self._layout, self.max_grad_norm, data.build, self.after)
            self._function = compiled(in_place(step))
            scalars = self._function(self._state, self._settings, rows, data.shared)
        except Exception as error:
            self._is_broken = True
            _warn(error)
            return self(data, rows)
        finally:
            th.set_rng_state(random_state)
        self._is_compiled = True
        return scalars

    def finish(self) -> None:
        """Hand parameters, moments and the numbers of steps back to the module and its optimiser."""
        if self._state is not None:
            assert self._layout is not None
            state, self._state = self._state, None
            self._layout.write_state(self.optimizer, state)


class State(NamedTuple):
    """What a gradient step changes."""

    parameters: Flat
    means: Flat  # Adam's first moments
    squares: Flat  # Adam's second moments
    n_steps: Tensor  # of each parameter, for other steps may change some of them
    extra: Flat = ()


class Layout:
    """Where each parameter lies in vectors that hold all of them, one vector for each dtype.

    :param named: Parameters by name.
    """

    def __init__(self, named: dict[str, nn.Parameter]) -> None:
        dtypes = sorted({p.dtype for p in named.values()}, key=str)
        self.groups = [[name for name, p in named.items() if p.dtype == dtype] for dtype in dtypes]
        self.named = {name: named[name] for group in self.groups for name in group}
        self.shapes = {name: p.shape for name, p in self.named.items()}
        number = {name: i for i, name in enumerate(self.named)}
        #: For each entry of each vector, the number of its parameter.
        self.owners = [
            th.cat([th.full((named[name].numel(),), number[name], device=named[name].device) for name in group])
            for group in self.groups
        ]

    def flatten(self, tensors: dict[str, Tensor]) -> Flat:
        """Return the vectors that hold all tensors."""
        return tuple(th.cat([tensors[name].reshape(-1) for name in group]) for group in self.groups)

    def unflatten(self, flat: Flat) -> dict[str, Tensor]:
        """Return the tensors that the vectors hold, as views."""
        tensors: dict[str, Tensor] = {}
        for group, vector in zip(self.groups, flat, strict=True):
            parts = vector.split([self.shapes[name].numel() for name in group])
            tensors |= {name: part.view(self.shapes[name]) for name, part in zip(group, parts, strict=True)}
        return tensors

    @th.no_grad()
    def read_state(self, optimizer: th.optim.Adam, named: dict[str, nn.Parameter] | None = None) -> State:
        """Return a copy of the parameters and of Adam's moments, which are zero before the first step.

        :param optimizer: Holds the moments.
        :param named: The same parameters of another network; the layout's own by default.
        """
        named = self.named if named is None else named
        (group,) = optimizer.param_groups
        for p in named.values():
            if not optimizer.state[p]:
                on_device = group["fused"] or group["capturable"]
                optimizer.state[p] = {
                    "step": th.zeros((), dtype=th.float32, device=p.device if on_device else "cpu"),
                    "exp_avg": th.zeros_like(p),
                    "exp_avg_sq": th.zeros_like(p),
                }
        moments = {name: optimizer.state[p] for name, p in named.items()}
        steps = th.stack([moments[name]["step"] for name in self.named])
        return State(
            self.flatten(dict(named)),
            self.flatten({name: state["exp_avg"] for name, state in moments.items()}),
            self.flatten({name: state["exp_avg_sq"] for name, state in moments.items()}),
            steps.to(group["params"][0].device, th.float64),
        )

    @th.no_grad()
    def write_state(self, optimizer: th.optim.Adam, state: State, named: dict[str, nn.Parameter] | None = None) -> None:
        """Write parameters and moments to where ``read_state`` found them."""
        named = self.named if named is None else named
        flats = (state.parameters, state.means, state.squares)
        parameters, means, squares = (self.unflatten(flat) for flat in flats)
        for name, n_steps in zip(self.named, state.n_steps.unbind(), strict=True):
            p, moments = named[name], optimizer.state[named[name]]
            p.copy_(parameters[name])
            moments["exp_avg"].copy_(means[name])
            moments["exp_avg_sq"].copy_(squares[name])
            moments["step"].copy_(n_steps)


def trained_parameters(step: EagerStep, minibatch: tuple[Any, ...]) -> dict[str, nn.Parameter]:
    """Return, by name, the parameters that a step changes: those of its optimiser that its loss depends on."""
    held = {id(p) for p in step.parameters}
    named = {name: p for name, p in step.forward.named_parameters() if id(p) in held}
    random_state = th.get_rng_state()
    loss, _ = step.loss(step.forward, *minibatch, *step.extra)
    th.set_rng_state(random_state)
    gradients = th.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: p for (name, p), gradient in zip(named.items(), gradients, strict=True) if gradient is not None}


def can_compile(optimizer: th.optim.Optimizer) -> bool:
    """Return whether an optimiser's step can be part of the compiled function: plain Adam with one group."""
    if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1:
        return False
    (group,) = optimizer.param_groups
    return not (group["weight_decay"] or group["amsgrad"] or group["maximize"])


def adam_settings(optimizer: th.optim.Adam) -> Tensor:
    """Return learning rate, β₁, β₂ and ε as one tensor, so that no code depends on their values."""
    (group,) = optimizer.param_groups
    settings = [float(group["lr"]), *group["betas"], group["eps"]]
    return th.tensor(settings, dtype=th.float64, device=group["params"][0].device)


def pure_step(
    forward: nn.Module,
    loss: StepLoss,
    layout: Layout,
    max_grad_norm: float | None,
    build: Callable[[Sequence[Tensor], Sequence[Tensor]], Any],
    after: After,
) -> Callable[..., tuple[State, dict[str, Tensor]]]:
    """Return the step as a function of tensors alone: (state, Adam's settings, rows, shared) → (state, scalars)."""

    def objective(parameters: dict[str, Tensor], minibatch: tuple[Any, ...]) -> Loss:
        def call(*inputs: Any) -> Any:
            return functional_call(forward, parameters, inputs)

        value, scalars = loss(call, *minibatch)
        return value, {key: scalar.detach() for key, scalar in scalars.items()}

    def step(
        state: State, settings: Tensor, rows: Sequence[Tensor], shared: Sequence[Tensor]
    ) -> tuple[State, dict[str, Tensor]]:
        parameters = layout.unflatten(state.parameters)
        gradients, scalars = grad(objective, has_aux=True)(parameters, (*build(rows, shared), *state.extra))
        flat = layout.flatten(gradients)
        if max_grad_norm is not None:
            flat = _clipped(flat, max_grad_norm)
        return _adam(state, flat, settings, layout.owners)._replace(extra=after(state.extra, scalars)), scalars

    return step


def in_place(
    step: Callable[..., tuple[State, dict[str, Tensor]]],
) -> Callable[..., dict[str, Tensor]]:
    """Return the step as a function that writes the new state over the old one."""

    def function(state: State, *inputs: Any) -> dict[str, Tensor]:
        new, scalars = step(state, *inputs)
        pairs = [(state.n_steps, new.n_steps)]
        for old_flat, new_flat in zip((*state[:3], state.extra), (*new[:3], new.extra), strict=True):
            pairs += zip(old_flat, new_flat, strict=True)
        for old, changed in pairs:
            old.copy_(changed)
        return scalars

    return function


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function as one graph.

    It gets a code object of its own: torch keeps no more than eight compiled variants of one, and steps of other
    models, made by the same lines, would count.
    """
    assert isinstance(function, FunctionType)
    code, closure = function.__code__.replace(), function.__closure__
    own = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    return th.compile(own, fullgraph=True, dynamic=False)


def _clipped(gradients: Flat, max_norm: float) -> Flat:
    """Scale gradients down to a joint norm of at most ``max_norm``, as ``clip_grad_norm_`` does."""
    norm = th.stack([g.square().sum().double() for g in gradients]).sum().sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return tuple(g * factor.to(g.dtype) for g in gradients)


def _adam(state: State, gradients: Flat, settings: Tensor, owners: Sequence[Tensor]) -> State:
    """Kingma & Ba's step in the arithmetic of ``torch.optim.Adam``."""
    rate, beta1, beta2, eps = settings.unbind()
    n_steps = state.n_steps + 1
    sizes, corrections = rate / (1 - beta1**n_steps), (1 - beta2**n_steps).sqrt()
    parameters, means, squares = [], [], []
    for parameter, mean, square, g, owner in zip(*state[:3], gradients, owners, strict=True):
        dtype = g.dtype
        size, correction = sizes.to(dtype)[owner], corrections.to(dtype)[owner]
        mean = mean + (1 - beta1).to(dtype) * (g - mean)
        square = beta2.to(dtype) * square + (1 - beta2).to(dtype) * g * g
        parameters.append(parameter - size * mean / (square.sqrt() / correction + eps.to(dtype)))
        means.append(mean)
        squares.append(square)
    return State(tuple(parameters), tuple(means), tuple(squares), n_steps)


def _warn(error: Exception) -> None:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    warnings.warn(
        f"The training step could not be compiled ({first_line}): training goes on without compilation, slower. "
        "compile=False silences this.",
        stacklevel=4,
    )
