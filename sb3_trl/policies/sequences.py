"""Steps of several episodes in sequences: what policies with a memory see instead of single observations.

The state of such a policy is the history. A sequence is replayed from its first step, with the hidden states of
whichever network replays it; only the states before that step are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch as th
from torch import Tensor, nn

from sb3_trl.table import Shared, Table, joined, table

__all__ = ["Hidden", "Sequences", "by_sequence", "largest", "one_step", "replay", "steps_of", "sums", "with_sequences"]

#: Hidden and cell states before the first step of w sequences, ``(w, layers, hidden)`` each.
Hidden: TypeAlias = tuple[Tensor, Tensor]


class Sequences(NamedTuple):
    """The n steps of w sequences, one sequence after the other, none of which goes on beyond the end of an episode.

    Whatever is said of the steps has n rows, in the same order; nobody outside ``replay`` meets padding.
    """

    observations: Any  # (n, ...), or a dict of such tensors
    lengths: Tensor  # (w,), integers that sum to n
    pi: Hidden  # of the actor
    vf: Hidden  # of the critic


def replay(lstm: nn.LSTM, features: Tensor, sequences: Sequences, start: Hidden) -> Tensor:
    """Return what an LSTM makes of every step, ``(n, hidden)``, by one call for all sequences.

    Sequences that are shorter than the longest are padded at their ends, where nothing reaches the steps.

    :param lstm: The actor's or the critic's.
    :param features: Of the steps, ``(n, features)``.
    :param sequences: To which the steps belong.
    :param start: The states before their first steps.
    """
    n, n_sequences = len(features), len(sequences.lengths)
    states = (start[0].transpose(0, 1).contiguous(), start[1].transpose(0, 1).contiguous())
    longest = int(sequences.lengths.max())
    if longest * n_sequences == n:
        outputs = _called(lstm, features.view(n_sequences, longest, -1).transpose(0, 1), states)
        return outputs.transpose(0, 1).reshape(n, -1)
    time, sequence = _places(sequences.lengths, n)
    padded = features.new_zeros(longest, n_sequences, features.shape[1]).index_put((time, sequence), features)
    return _called(lstm, padded, states)[time, sequence]


def _called(lstm: nn.LSTM, inputs: Tensor, states: Hidden) -> Tensor:
    if inputs.is_cuda and th.is_grad_enabled() and not lstm.training:
        with th.backends.cudnn.flags(enabled=False):  # which has gradients in training mode alone
            return lstm(inputs, states)[0]
    return lstm(inputs, states)[0]


def _places(lengths: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the number of every step in its sequence, and the sequence's number; ``(n,)`` each."""
    sequence = th.arange(len(lengths), device=lengths.device).repeat_interleave(lengths, output_size=n)
    starts = lengths.cumsum(0) - lengths
    return th.arange(n, device=lengths.device) - starts[sequence], sequence


def one_step(policy: Any, observations: Any) -> Any:
    """Return observations as a policy takes them: for one with a memory, a sequence of one step each."""
    if not hasattr(policy, "lstm_actor"):
        return observations
    n_layers, _, size = policy.lstm_hidden_state_shape
    n = table(observations).n_rows
    zeros = th.zeros(n, n_layers, size, device=policy.device)
    lengths = th.ones(n, dtype=th.int64, device=policy.device)
    return Sequences(observations, lengths, (zeros, zeros), (zeros, zeros))


def steps_of(observations: Any) -> Any:
    """Return the observations of single steps."""
    return observations.observations if isinstance(observations, Sequences) else observations


# --- what is measured at every step, by sequence ---


def largest(values: Tensor, observations: Any) -> Tensor:
    """Return the largest of every sequence's values, ``(w,)``; where states are no sequences, the values.

    NaN is larger than anything.

    :param values: ``(n,)``.
    :param observations: Of the n states.
    """
    sequences = _find(observations)
    if sequences is None:
        return values
    _, sequence = _places(sequences.lengths, len(values))
    return values.new_full((len(sequences.lengths),), -th.inf).scatter_reduce(0, sequence, values, "amax")


def sums(values: Tensor, observations: Any) -> Tensor:
    """Return the sum of every sequence's values, ``(w,)``; arguments as those of ``largest``."""
    sequences = _find(observations)
    if sequences is None:
        return values
    _, sequence = _places(sequences.lengths, len(values))
    return values.new_zeros(len(sequences.lengths)).index_add(0, sequence, values)


# --- data in sequences ---


@table.register
def _(data: Sequences) -> Table:
    """A row is a step; what belongs to sequences belongs to all of them. ``by_sequence`` has other rows."""
    shared = [table(Shared(tensor)) for tensor in _own(data)]
    return joined([table(data.observations), *shared], _sequences, Sequences)


def _own(sequences: Sequences) -> list[Tensor]:
    return [sequences.lengths, *sequences.pi, *sequences.vf]


def _sequences(parts: list[Any]) -> Sequences:
    observations, lengths, *states = parts
    return Sequences(observations, lengths, tuple(states[:2]), tuple(states[2:]))


def by_sequence(data: Any) -> Table:
    """Return data of n steps as a table that has a row for each sequence; a part has its sequences' steps.

    :param data: Nested tuples, one of which is ``Sequences``; of everything else that has rows, they are its steps.
    """
    sequences = _find(data)
    if sequences is None:
        raise TypeError("There are no sequences in this data.")
    steps, own = table(data), _own(sequences)
    lengths, n_tensors = sequences.lengths, len(steps.rows)
    place = next(i for i, tensor in enumerate(steps.shared) if tensor is sequences.lengths)  # the others follow it

    def build(rows: Any, shared: Any) -> Any:
        first, lengths, *_ = rows
        others = list(shared[n_tensors:])
        others[place : place + len(own)] = rows[1:]
        n = int(lengths.sum())
        time, sequence = _places(lengths, n)
        index = first[sequence] + time
        return steps.build([tensor[index] for tensor in shared[:n_tensors]], others)

    first = lengths.cumsum(0) - lengths
    size = len(steps.rows[0]) / len(lengths)
    return Table([first, *own], [*steps.rows, *steps.shared], build, ("by sequence", steps.kind), size)


def with_sequences(data: Any, function: Callable[[Sequences], Sequences]) -> Any:
    """Return nested tuples with other sequences in the place of theirs."""
    if isinstance(data, Sequences):
        return function(data)
    if not isinstance(data, tuple):
        return data
    parts = [with_sequences(part, function) for part in data]
    return type(data)._make(parts) if hasattr(data, "_make") else tuple(parts)


def _find(data: Any) -> Sequences | None:
    """Return the sequences in nested tuples, if there are any."""
    if isinstance(data, Sequences):
        return data
    found = (_find(part) for part in data) if isinstance(data, tuple) else ()
    return next((sequences for sequences in found if sequences is not None), None)
