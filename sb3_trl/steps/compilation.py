"""``torch.compile`` for a function that is called thousands of times with little in between."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from types import FunctionType, MappingProxyType
from typing import Any, TypeAlias

import torch as th
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["Compiled", "Result", "Varying", "pure_forward", "warn_uncompiled"]

# The calls around small kernels cost more than the kernels: all of them in C++, and sizes are checked by torch.compile.
# tanh from exp is three times as fast, and off by no more than 2e-7.
_CPU_OPTIONS = {"cpp_wrapper": True, "size_asserts": False, "cpp.use_decompose_tanh": True}


#: Tensors that change from call to call; of the last, the shape may too.
Varying: TypeAlias = Sequence[Tensor]
#: What becomes of the first of them, and scalars by name.
Result: TypeAlias = tuple[Sequence[Tensor], dict[str, Tensor]]


class Compiled:
    """A pure function of tensors, compiled as one graph.

    The first call with some fixed tensors checks whatever the compiled code relies on, and compiles again where that
    no longer holds. Calls after it with the same object ``fixed`` are known to need no check, which costs more than
    small networks do: between them, nothing may change but the tensors that vary, and the numbers in the others.

    :param function: Maps tensors that vary, and a nested tuple of tensors that do not, to new tensors and scalars.
    :param cpu_options: Of the code for the CPU, besides this module's.
    """

    def __init__(
        self, function: Callable[[Varying, Any], Result], cpu_options: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self._cpu_options = {**_CPU_OPTIONS, **cpu_options}
        # A code object of its own: torch keeps no more than eight compiled variants of one, and functions of other
        # models, made by the same lines, would count.
        assert isinstance(function, FunctionType)
        code, closure = function.__code__.replace(), function.__closure__
        own = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
        with _validation_as_it_was():
            self._checked = th.compile(own, fullgraph=True, dynamic=False, backend=_backend_of(self))
        self._code: Callable[..., Sequence[Tensor]] | None = None
        self._arguments: Sequence[Any] = ()
        self._results: Sequence[Tensor] = ()
        self._fixed: Any = None
        self._shape: th.Size | None = None

    def __call__(self, varying: Varying, fixed: Any) -> Result:
        """Call the function."""
        shape = varying[-1].shape
        if self._code is not None and fixed is self._fixed and shape == self._shape:
            return self._again(self._code, varying)
        self._fixed, self._shape = fixed, shape
        with _validation_as_it_was():
            new, scalars = self._checked(varying, fixed)
        # Where torch put what it was given and what it returned: recognised by being the same objects.
        places = {id(argument): place for place, argument in enumerate(self._arguments)}
        self._inputs = [places.get(id(tensor)) for tensor in varying]
        found = {id(tensor): place for place, tensor in enumerate([*self._results, *varying])}
        self._new = [found[id(tensor)] for tensor in new]
        self._scalars = {name: found[id(tensor)] for name, tensor in scalars.items()}
        return new, scalars

    def _again(self, code: Callable[..., Sequence[Tensor]], varying: Varying) -> Result:
        """Call what the last call ran."""
        arguments = list(self._arguments)
        for place, tensor in zip(self._inputs, varying, strict=True):
            if place is not None:
                arguments[place] = tensor
        found = [*code(*arguments), *varying]
        return [found[place] for place in self._new], {name: found[place] for name, place in self._scalars.items()}

    def forget(self) -> None:
        """Let go of the tensors of the last call; the next one is checked."""
        self._code, self._fixed, self._arguments, self._results = None, None, (), ()


def _backend_of(compiled: Compiled) -> Callable[[th.fx.GraphModule, list[Tensor]], Callable[..., Sequence[Tensor]]]:
    """Return what compiles for an object, and lets it see what every call is made with and returns.

    Torch keeps backends for ever: this one keeps nothing alive, or every model that has been compiled would be.
    """
    kept = weakref.ref(compiled)
    options = compiled._cpu_options

    def backend(graph: th.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
        code = _code(graph, examples, options)

        def run(*arguments: Any) -> Sequence[Tensor]:
            results = code(*arguments)
            owner = kept()
            assert owner is not None, "it is what calls"
            owner._code, owner._arguments, owner._results = code, arguments, results
            return results

        return run

    return backend


def _code(graph: th.fx.GraphModule, examples: list[Tensor], cpu_options: Mapping[str, Any]) -> Any:
    """Return what a graph is compiled to."""
    from torch._inductor.compile_fx import compile_fx  # slow to import

    on_cpu = all(example.device.type == "cpu" for example in examples if isinstance(example, Tensor))
    return compile_fx(graph, examples, config_patches=dict(cpu_options) if on_cpu else {})


@contextmanager
def _validation_as_it_was() -> Iterator[None]:
    """Undo that torch, when it compiles for the first time, ends the validation of everybody's distributions."""
    setting = th.distributions.Distribution._validate_args
    try:
        yield
    finally:
        if th.distributions.Distribution._validate_args != setting:
            th.distributions.Distribution.set_default_validate_args(setting)


def warn_uncompiled(error: Exception) -> None:
    """Say that training goes on without compiled code, and why."""
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    warnings.warn(
        f"The training step could not be compiled ({first_line}): training goes on without compilation, slower. "
        "compile=False silences this.",
        stacklevel=4,
    )


def pure_forward(module: nn.Module) -> Callable[..., Any]:
    """Return a module as a function of its parameters, and perhaps buffers, by name, and its inputs.

    A module that is known by several names, such as a features extractor that actor and critic share, counts once
    (``functional_call`` by itself leaves what it was given in it, when it is compiled), and a parameter that several
    modules hold is exchanged in all of them.
    """
    first: dict[int, str] = {}
    others: dict[str, str] = {}
    for prefix, part in module.named_modules():
        for own, tensor in chain(part._parameters.items(), part._buffers.items()):
            if tensor is not None:
                name = f"{prefix}.{own}" if prefix else own
                if first.setdefault(id(tensor), name) != name:
                    others[name] = first[id(tensor)]

    def forward(tensors: dict[str, Tensor], *inputs: Any) -> Any:
        again = {name: tensors[known] for name, known in others.items() if known in tensors}
        return functional_call(module, tensors | again, inputs, tie_weights=False)

    return forward
