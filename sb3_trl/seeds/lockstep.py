"""Several updates side by side: each runs until it has gradient steps to take, which are then taken together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch as th
from greenlet import GreenletExit, greenlet
from torch import Tensor, nn
from torch.func import vmap

from sb3_trl.algorithms.base import TrustRegionAlgorithm
from sb3_trl.steps.compilation import Compiled, warn_uncompiled
from sb3_trl.steps.flat_adam import Layout, State, step_sizes
from sb3_trl.steps.gradient_step import EagerStep, StepLoss, pure_step, trained_parameters, variant_of
from sb3_trl.steps.running_means import RunningMeans
from sb3_trl.table import Table

__all__ = ["FEWEST_TOGETHER", "JointStep", "Request", "filled", "step_one_by_one", "train_in_lockstep"]

#: What a block runs in: the random stream of one seed.
Stream = AbstractContextManager[Any]

#: Torch multiplies one matrix with another kernel than several: a seed alone would differ in its last digits.
FEWEST_TOGETHER = 2

#: Whether loops and what is left at their ends use vectors depends on how long they are, and so on how many seeds
#: there are, unless all do; and how a sum is divided among threads, unless there is one. Both show in the last digit.
_CPU_OPTIONS = {"cpp.enable_tiling_heuristics": False, "cpp.threads": 1}

T = TypeVar("T")


@dataclass
class Request:
    """Gradient steps that one update asks for: what ``TrustRegionAlgorithm._take_steps`` was called with."""

    stream: Stream
    max_grad_norm: float | None
    name: str
    loss: StepLoss
    forward: nn.Module
    optimizer: th.optim.Adam
    data: Table
    n_epochs: int
    stats: RunningMeans
    rule: dict[str, Any]

    def step(self) -> EagerStep:
        """Return the step that is asked for."""
        return EagerStep(self.forward, self.loss, self.optimizer, self.max_grad_norm, **self.rule)

    @property
    def variant(self) -> Hashable:
        """Equal for requests that differ in tensors alone: one compiled function serves them."""
        parameters, extra = self.optimizer.param_groups[0]["params"], self.rule.get("extra", ())
        return variant_of(self.data, parameters, self.max_grad_norm, extra)


class JointStep:
    """The gradient step of several seeds as one function, mapped over them and compiled.

    A seed's result does not depend on the others, to the last digit, nor on how many of them there are.

    :param first: A request; the others are of its variant.
    :param n_requests: The most requests that come together. Fewer are filled up with copies, so that one compiled
        function serves all.
    :param batch_size: Minibatch size of each seed.
    """

    def __init__(self, first: Request, n_requests: int, batch_size: int) -> None:
        self.n_rows = max(n_requests, FEWEST_TOGETHER)
        self.batch_size = batch_size
        eager = first.step()
        minibatch = first.data.part(next(first.data.split(batch_size)))
        versions = [buffer._version for buffer in first.forward.buffers()]
        self.layout = Layout(trained_parameters(eager, minibatch))
        keeps_statistics = versions != [buffer._version for buffer in first.forward.buffers()]
        self._frozen = [name for name, _ in _tensors(first.forward) if name not in self.layout.named]
        step = pure_step(first.forward, first.loss, self.layout, first.data.build, eager.after, self._frozen)
        in_dims = (0, (0, 0, None if first.max_grad_norm is None else 0, 0))
        # Nothing is trained, or layers keep statistics, which a mapped function cannot change.
        is_apart = not self.layout.named or keeps_statistics
        self._function = None if is_apart else Compiled(vmap(step, in_dims), _CPU_OPTIONS)
        self._tensors: Sequence[Tensor] = ()
        self._fixed: Any = None
        self._scalars: list[dict[str, Tensor]] = []

    def run(self, requests: Sequence[Request]) -> None:
        """Take the steps that all of them ask for, the minibatches of each shuffled by its own stream.

        What cannot be compiled is taken by one seed after the other, with one warning.
        """
        eager = [request.step() for request in requests]
        self._begin(requests)
        try:
            for _ in range(requests[0].n_epochs):
                order = th.stack(filled([_random_order(request) for request in requests], self.n_rows))
                for index in order.split(self.batch_size, dim=1):
                    if not self._step_together(requests, index):
                        for request, step, own in zip(requests, eager, index, strict=False):
                            with request.stream:
                                request.stats.add([step(request.data, request.data.at(own).rows)])
        finally:  # Ctrl-C may come at any time
            self._finish(requests)

    def _step_together(self, requests: Sequence[Request], index: Tensor) -> bool:
        """Take one step of every seed, and return whether it was taken."""
        if self._function is None:
            return False
        try:
            self._tensors, scalars = self._function((*self._tensors, next(self._sizes), index), self._fixed)
        except Exception as error:
            self._finish(requests)
            self._function = None
            warn_uncompiled(error)
            return False
        self._scalars.append(scalars)
        return True

    def _begin(self, requests: Sequence[Request]) -> None:
        """Take over the parameters and moments of all seeds."""
        self._scalars = []
        if self._function is None:
            return
        rows = filled(requests, self.n_rows)
        state, self._sizes = self._read(rows)
        self._tensors = state.tensors
        limits = None
        if requests[0].max_grad_norm is not None:
            device = requests[0].data.rows[0].device
            limits = th.tensor([request.max_grad_norm for request in rows], dtype=th.float64, device=device)
        frozen = _stacked([[p.detach() for p in self._named(r, self._frozen).values()] for r in rows])
        tables = (_stacked([r.data.rows for r in rows]), _stacked([r.data.shared for r in rows]))
        self._fixed = (*tables, limits, frozen)

    def _finish(self, requests: Sequence[Request]) -> None:
        """Hand everything back, and let go of the rollouts."""
        if self._function is not None:
            self._write(requests, State.of(self._tensors, len(self.layout.groups)), len(self._scalars))
            self._function.forget()
            self._tensors, self._fixed = (), None
        for key in self._scalars[0] if self._scalars else ():
            values = th.stack([step[key] for step in self._scalars], 1)
            for request, own_values in zip(requests, values, strict=False):
                request.stats.extend(key, own_values)
        self._scalars = []

    def _read(self, requests: Sequence[Request]) -> tuple[State, Iterator[Tensor]]:
        """Return the stacked state of all seeds, and the stacked step sizes of one step after the other."""
        reads = [
            self.layout.read_state(request.optimizer, self._named(request, self.layout.named)) for request in requests
        ]
        extra = [request.rule.get("extra", ()) for request in requests]
        parameters, means, squares = (_stacked(flats) for flats in zip(*(state[:3] for state, _ in reads), strict=True))
        sizes = [
            step_sizes(request.optimizer, n_steps, self.layout.dtype)
            for request, (_, n_steps) in zip(requests, reads, strict=True)
        ]
        blocks = (th.stack(own, 1) for own in zip(*sizes, strict=True))
        return State(parameters, means, squares, _stacked(extra)), chain.from_iterable(blocks)

    def _named(self, request: Request, names: Iterable[str]) -> dict[str, Any]:
        everything = dict(_tensors(request.forward))
        return {name: everything[name] for name in names}

    def _write(self, requests: Sequence[Request], state: State, n_taken: int) -> None:
        for k, request in enumerate(requests):
            parameters, means, squares = (tuple(vector[k] for vector in flat) for flat in state[:3])
            own = State(parameters, means, squares)
            self.layout.write_state(request.optimizer, own, n_taken, self._named(request, self.layout.named))
            for tensor, stacked in zip(request.rule.get("extra", ()), state.extra, strict=True):
                tensor.copy_(stacked[k])


def step_one_by_one(requests: Sequence[Request], batch_size: int) -> None:
    """Take the steps that requests ask for, of one after the other, as each would take them alone."""
    for request in requests:
        with request.stream:
            step = request.step()
            for _ in range(request.n_epochs):
                request.stats.add(step.epoch(request.data, batch_size))


def filled(rows: Sequence[T], n_rows: int) -> list[T]:
    """Return ``rows``, and the first of them as often as ``n_rows`` asks for."""
    return [*rows, *[rows[0]] * (n_rows - len(rows))]


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


def _random_order(request: Request) -> Tensor:
    with request.stream:
        return request.data.random_order()


def _stacked(flats: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """Stack the first tensors of all, the second tensors of all, …."""
    return tuple(th.stack(vectors) for vectors in zip(*flats, strict=True))


# --- updates that wait for each other ---


class _Update:
    """One seed's ``train()``, which stops wherever it asks for gradient steps, and goes on once they are taken.

    A greenlet: it runs in the thread of who calls ``take_turn``, and only until that call returns.

    :param model: The seed's model.
    :param stream: Its random stream.
    :param compile: Whether to compile what the model evaluates.
    """

    def __init__(self, model: TrustRegionAlgorithm, stream: Stream, compile: bool) -> None:
        self.model = model
        self.stream = stream
        self.compile = compile
        #: What it waits for; ``None`` before the first turn and after the last.
        self.request: Request | None = None
        self._is_ending = False
        self._grad_mode = th.is_grad_enabled()
        self._greenlet = greenlet(self._train)
        self._greenlet.gr_context = copy_context()  # its own would be empty

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy of the model trains alone

    def _train(self) -> None:
        self.model._lockstep = self
        try:
            self.model.train()
        finally:
            self.request = None
            del self.model._lockstep

    def ask(self, *arguments: Any) -> None:
        """Stand in for the model's ``_take_steps``: wait until the steps have been taken."""
        if self._is_ending:
            raise GreenletExit
        self.request = Request(self.stream, self.model.max_grad_norm, *arguments)
        parent = self._greenlet.parent
        assert parent is not None
        parent.switch()

    def take_turn(self) -> None:
        """Let it run until it asks, or ends; what it raises is raised here."""
        with self.stream, self._own_grad_mode():
            self._greenlet.switch()

    def end(self) -> None:
        """Leave ``train()`` where it stands, through its ``finally`` clauses."""
        self._is_ending = True
        if not self._greenlet.dead:
            with self.stream, self._own_grad_mode():
                self._greenlet.throw()

    @contextmanager
    def _own_grad_mode(self) -> Iterator[None]:
        """Torch keeps this setting for the thread, not for the greenlet."""
        callers = th.is_grad_enabled()
        th.set_grad_enabled(self._grad_mode)
        try:
            yield
        finally:
            self._grad_mode = th.is_grad_enabled()
            th.set_grad_enabled(callers)


def train_in_lockstep(
    models: Sequence[TrustRegionAlgorithm],
    streams: Sequence[Stream],
    take_steps: Callable[[Sequence[Request]], None],
    compile: bool,
) -> None:
    """Call ``train()`` of every model; gradient steps that several ask for at the same time are taken together.

    What one of them raises, or ``take_steps``, ends them all before it is raised here.

    :param models: Models of one configuration.
    :param streams: The random stream of each.
    :param take_steps: Takes the steps of requests of one name.
    :param compile: Whether to compile what they evaluate.
    """
    with ExitStack() as stack:
        updates = [_Update(model, stream, compile) for model, stream in zip(models, streams, strict=True)]
        for update in updates:
            stack.callback(update.end)
        _take_all_turns(updates, take_steps)


def _take_all_turns(updates: Sequence[_Update], take_steps: Callable[[Sequence[Request]], None]) -> None:
    running = updates
    while running:
        for update in running:
            update.take_turn()
        running = [update for update in running if update.request is not None]
        groups: dict[str, list[Request]] = {}
        for update in running:
            assert update.request is not None
            groups.setdefault(update.request.name, []).append(update.request)
        for requests in groups.values():
            take_steps(requests)
