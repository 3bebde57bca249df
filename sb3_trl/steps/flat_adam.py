"""Adam on vectors that hold all parameters, as a pure function of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import torch as th
from torch import Tensor, nn

__all__ = ["Flat", "Layout", "State", "adam", "clipped", "is_plain_adam", "step_sizes"]

#: Tensors of one dtype each.
Flat: TypeAlias = tuple[Tensor, ...]
_BLOCK = 256


class State(NamedTuple):
    """What a gradient step changes."""

    parameters: Flat
    means: Flat  # Adam's first moments
    squares: Flat  # Adam's second moments
    extra: Flat = ()

    @property
    def tensors(self) -> Flat:
        """All of them in a row."""
        return (*self.parameters, *self.means, *self.squares, *self.extra)

    @classmethod
    def of(cls, tensors: Sequence[Tensor], n_vectors: int) -> State:
        """Return the state that these are the tensors of, with so many vectors of parameters."""
        ends = [0, n_vectors, 2 * n_vectors, 3 * n_vectors, len(tensors)]
        return cls(*(tuple(tensors[start:end]) for start, end in pairwise(ends)))


class Layout:
    """Where each parameter lies in vectors that hold all of them, one vector for each dtype.

    :param named: Parameters by name.
    """

    def __init__(self, named: dict[str, nn.Parameter]) -> None:
        dtypes = sorted({p.dtype for p in named.values()}, key=str)
        self.groups = [[name for name, p in named.items() if p.dtype == dtype] for dtype in dtypes]
        self.named = {name: named[name] for group in self.groups for name in group}
        self.shapes = {name: p.shape for name, p in self.named.items()}

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

    @property
    def dtype(self) -> th.dtype:
        """The most precise of the parameters."""
        return th.float64 if any(p.dtype == th.float64 for p in self.named.values()) else th.float32

    @th.no_grad()
    def read_state(
        self, optimizer: th.optim.Adam, named: dict[str, nn.Parameter] | None = None
    ) -> tuple[State, Tensor]:
        """Return a copy of the parameters and of Adam's moments, and the number of steps behind each parameter.

        Moments and numbers are zero before the first step. The numbers differ where other steps change some of the
        parameters only; they are on the CPU, in float64.

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
        state = State(
            self.flatten(dict(named)),
            self.flatten({name: state["exp_avg"] for name, state in moments.items()}),
            self.flatten({name: state["exp_avg_sq"] for name, state in moments.items()}),
        )
        return state, th.stack([moments[name]["step"] for name in self.named]).to("cpu", th.float64)

    @th.no_grad()
    def write_state(
        self, optimizer: th.optim.Adam, state: State, n_taken: int, named: dict[str, nn.Parameter] | None = None
    ) -> None:
        """Write parameters and moments to where ``read_state`` found them, ``n_taken`` steps later."""
        named = self.named if named is None else named
        flats = (state.parameters, state.means, state.squares)
        parameters, means, squares = (self.unflatten(flat) for flat in flats)
        for name in self.named:
            p, moments = named[name], optimizer.state[named[name]]
            p.copy_(parameters[name])
            moments["exp_avg"].copy_(means[name])
            moments["exp_avg_sq"].copy_(squares[name])
            moments["step"].add_(n_taken)


def is_plain_adam(optimizer: th.optim.Optimizer) -> bool:
    """Return whether ``adam`` takes this optimiser's steps: Adam with one group and no extras."""
    if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1:
        return False
    (group,) = optimizer.param_groups
    return not (group["weight_decay"] or group["amsgrad"] or group["maximize"])


def step_sizes(optimizer: th.optim.Adam, n_steps: Tensor, dtype: th.dtype) -> Iterator[Tensor]:
    """Yield the numbers of Adam's next steps, in blocks of a row for each step, without end.

    A row holds 1 − β₁, β₂, 1 − β₂ and ε; then α/(1 − β₁ⁿ) of every parameter; then
    √(1 − β₂ⁿ) of every parameter. They are computed in float64, and in advance: powers in the middle of a compiled step
    would be taken for every entry of every parameter.

    :param optimizer: Has learning rate, β₁, β₂ and ε.
    :param n_steps: The steps behind each parameter, ``(n_parameters,)``, float64.
    :param dtype: Of the blocks.
    """
    (group,) = optimizer.param_groups
    rate, (beta1, beta2) = float(group["lr"]), group["betas"]
    device = group["params"][0].device
    constants = th.tensor([1 - beta1, beta2, 1 - beta2, group["eps"]], dtype=th.float64).expand(_BLOCK, -1)
    while True:
        n = n_steps + th.arange(1, _BLOCK + 1, dtype=th.float64).unsqueeze(1)
        rows = th.cat([constants, rate / (1 - beta1**n), (1 - beta2**n).sqrt()], 1)
        yield rows.to(device, dtype)
        n_steps = n[-1]


def clipped(gradients: dict[str, Tensor], max_norm: Tensor) -> dict[str, Tensor]:
    """Scale gradients down to a joint norm of at most ``max_norm``, float64, as ``clip_grad_norm_`` does."""
    norm = th.stack([g.square().sum().double() for g in gradients.values()]).sum().sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return {name: g * factor.to(g.dtype) for name, g in gradients.items()}


def adam(state: State, gradients: dict[str, Tensor], sizes: Tensor, layout: Layout) -> State:
    """Take Kingma & Ba's step in the arithmetic of ``torch.optim.Adam``.

    :param state: Parameters and moments.
    :param gradients: By the parameters' names.
    :param sizes: A row of what ``step_sizes`` yields.
    :param layout: Where the parameters lie.
    """
    (keep1, beta2, keep2, eps), of_parameters = sizes[:4].unbind(), sizes[4:]
    rates, corrections = (dict(zip(layout.named, x.unbind(), strict=True)) for x in of_parameters.chunk(2))
    parameters, means, squares = (layout.unflatten(flat) for flat in state[:3])
    for name, g in gradients.items():
        dtype = g.dtype
        means[name] = means[name] + keep1.to(dtype) * (g - means[name])
        squares[name] = beta2.to(dtype) * squares[name] + keep2.to(dtype) * g * g
        scale = squares[name].sqrt() / corrections[name].to(dtype) + eps.to(dtype)
        parameters[name] = parameters[name] - rates[name].to(dtype) * means[name] / scale
    return State(layout.flatten(parameters), layout.flatten(means), layout.flatten(squares), state.extra)
