"""A rollout cut into sequences: where episodes start, where the rollout starts, and at windows in between."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer

from sb3_trl.policies.masks import Masked
from sb3_trl.policies.sequences import Sequences
from sb3_trl.rollouts.rollout import Rollout, rollout_from_buffer

__all__ = ["RecurrentBuffer", "cut", "recurrent_rollout", "windows"]

RecurrentBuffer = RecurrentRolloutBuffer | RecurrentDictRolloutBuffer


def recurrent_rollout(buffer: RecurrentBuffer) -> Rollout:
    """Return the buffer's contents, whose observations are whole sequences, or masked ones.

    A sequence starts where an episode starts, with states of zero, or where the rollout starts, with the states of
    then. Environments come one after the other.
    """
    rollout = rollout_from_buffer(buffer)
    observations = rollout.observations
    if isinstance(observations, Masked):
        return rollout._replace(observations=observations._replace(observations=cut(buffer, observations.observations)))
    return rollout._replace(observations=cut(buffer, observations))


def cut(buffer: RecurrentBuffer, observations: Any, length: int | None = None) -> Sequences:
    """Cut the steps of a rollout into sequences.

    :param buffer: Knows where episodes start, and the hidden states at every step.
    :param observations: Of all steps, environments one after the other.
    :param length: Of the longest; ``None`` for any.
    """
    starts = _flat(buffer, buffer.episode_starts).reshape(buffer.n_envs, buffer.buffer_size) > 0.5
    begins = starts.copy()
    begins[:, 0] = True
    if length is not None:
        begins = _with_windows(begins, length)
    where = np.flatnonzero(begins)
    lengths = np.diff(where, append=begins.size)
    goes_on = th.as_tensor(~starts.reshape(-1)[where], device=buffer.device)

    def at_starts(name: str) -> th.Tensor:
        array = getattr(buffer, name)
        if buffer.generator_ready:
            rows = array[where]
        else:
            env, step = np.divmod(where, buffer.buffer_size)
            rows = array[step, :, env]
        return th.as_tensor(rows, device=buffer.device) * goes_on.view(-1, 1, 1)

    pi = (at_starts("hidden_states_pi"), at_starts("cell_states_pi"))
    vf = (at_starts("hidden_states_vf"), at_starts("cell_states_vf"))
    return Sequences(observations, th.as_tensor(lengths, device=buffer.device), pi, vf)


def windows(buffer: RecurrentBuffer, sequences: Sequences, length: int | None) -> Sequences:
    """Return the same steps in sequences of at most ``length`` steps, which start from recorded states.

    :param buffer: Has recorded them.
    :param sequences: The whole ones.
    :param length: ``None`` for whole ones.
    """
    return sequences if length is None else cut(buffer, sequences.observations, length)


def _with_windows(begins: np.ndarray, length: int) -> np.ndarray:
    """Begin anew after every ``length`` steps of a sequence; ``begins`` is ``(n_envs, n_steps)``."""
    flat, n = begins.reshape(-1), np.arange(begins.size)
    since_start = n - np.maximum.accumulate(np.where(flat, n, 0))
    return (since_start % length == 0).reshape(begins.shape)


def _flat(buffer: RecurrentBuffer, array: np.ndarray) -> np.ndarray:
    return array if buffer.generator_ready else buffer.swap_and_flatten(array)
