"""A function of a network at some states, compiled once for all networks of one architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, TypeAlias

import torch as th
from torch import Tensor, nn

from sb3_trl.random_state import preserved_random_state
from sb3_trl.steps.compilation import Compiled, Result, Varying, pure_forward, warn_uncompiled
from sb3_trl.table import Table

__all__ = ["CompiledEvaluation", "Evaluation"]

#: Maps numbers of rows, ``(n,)``, to one number of each, ``(n,)``.
Evaluation: TypeAlias = Callable[[Tensor], Tensor]


class CompiledEvaluation:
    """``function(forward, *states)`` without gradient, with the parameters of any network like ``forward``.

    Parameters, and what layers keep besides, are inputs: nothing is compiled again when they change. What cannot be
    compiled is evaluated without, with one warning.

    :param function: Returns one number per state.
    :param forward: A forward pass.
    :param data: A table whose ``part`` is the states.
    """

    def __init__(self, function: Callable[..., Tensor], forward: nn.Module, data: Table) -> None:
        names = [name for name, _ in chain(forward.named_parameters(), forward.named_buffers())]
        build, network = data.build, pure_forward(forward)

        def evaluate(varying: Varying, fixed: tuple[Sequence[Tensor], ...]) -> Result:
            (index,), (tensors, rows, shared) = varying, fixed
            own = dict(zip(names, tensors, strict=True))

            def call(*inputs: Any) -> Any:
                return network(own, *inputs)

            return (), {"value": function(call, *build([tensor[index] for tensor in rows], shared))}

        self._function = function
        self._compiled = Compiled(evaluate)
        self._is_broken = False
        self._data: Table | None = None

    def of(self, forward: nn.Module, data: Table, size: int) -> Evaluation:
        """Return the function at up to ``size`` rows, which looks at the parameters when it is called.

        :param forward: The network; with the same table, the same.
        :param data: The states.
        :param size: The number of rows that is computed, whatever is asked for.
        """
        if data is not self._data:  # what compiled code relies on may have changed, too
            # Detached: of no network that is known to compiled code by its parameters.
            tensors = [tensor.detach() for tensor in chain(forward.parameters(), forward.buffers())]
            self._data, self._fixed = data, (tensors, data.rows, data.shared)
        fixed = self._fixed

        @th.no_grad()
        def evaluation(index: Tensor) -> Tensor:
            n = len(index)
            if not self._is_broken:
                padded = index if n == size else th.cat([index, index[:1].expand(size - n)])
                try:
                    with preserved_random_state(index.device):  # compiling must not change it
                        return self._compiled((padded,), fixed)[1]["value"][:n]
                except Exception as error:
                    self._is_broken = True
                    warn_uncompiled(error)
            return self._function(forward, *data.part(data.at(index).rows))

        return evaluation

    def forget(self) -> None:
        """Let go of the tensors of the last call."""
        self._data = None
        self._compiled.forget()
