"""What stands between a policy's features and its head: layers, and a memory that a caller carries along."""

from __future__ import annotations

import copy
from functools import singledispatch
from typing import Any

import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

from sb3_trl.deployment.ports import Port

__all__ = ["Core", "core"]


class Core(nn.Module):
    """The actor's hidden layers without memory.

    :param policy: Any of SB3's actor-critic policies.
    """

    #: The memory, which goes in as ``state.…`` and comes out as ``next_state.…``.
    states: tuple[Port, ...] = ()

    def __init__(self, policy: Any) -> None:
        super().__init__()
        extractor = policy.mlp_extractor
        is_own = type(extractor).forward_actor is not MlpExtractor.forward_actor
        self.layers = _Actor(extractor) if is_own else copy.deepcopy(extractor.policy_net).cpu()

    def forward(self, features: Tensor, state: tuple[Tensor, ...], start: Tensor | None) -> Any:
        """Return the last hidden layer, and the new memory.

        :param features: ``(batch, f)``.
        :param state: The memory, batch first.
        :param start: Where an episode begins, ``(batch,)``, bool; there the memory is empty.
        """
        return self.layers(features), state


class _Actor(nn.Module):
    """The actor's part of an ``mlp_extractor`` of somebody else's, of which the method alone is known."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor: Any = copy.deepcopy(extractor).cpu()

    def forward(self, features: Tensor) -> Tensor:
        """Return the actor's last hidden layer."""
        return self.extractor.forward_actor(features)


class LSTMCore(Core):
    """An LSTM, one step at a time, and the hidden layers behind it.

    :param policy: One of sb3-contrib's recurrent policies.
    """

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        lstm: nn.LSTM = policy.lstm_actor
        if lstm.bidirectional or lstm.proj_size:
            raise ValueError("An LSTM that is bidirectional or has a projection cannot be exported.")
        shape = (lstm.num_layers, lstm.hidden_size)
        self.states = tuple(Port(name, "float32", shape, f"the LSTM's {name} state") for name in ("hidden", "cell"))
        self.cells = nn.ModuleList(_cell(lstm, i) for i in range(lstm.num_layers))

    def forward(self, features: Tensor, state: tuple[Tensor, ...], start: Tensor | None) -> Any:
        """Return the last hidden layer and the new memory, as ``Core`` says."""
        assert start is not None
        keep = 1.0 - start.float().reshape(-1, 1, 1)
        x, hidden, cell = features, [], []
        for gates, h, c in zip(self.cells, *((part * keep).unbind(1) for part in state), strict=True):
            i, f, g, o = gates(th.cat([x, h], -1)).chunk(4, -1)
            cell.append(f.sigmoid() * c + i.sigmoid() * g.tanh())
            x = o.sigmoid() * cell[-1].tanh()
            hidden.append(x)
        return self.layers(x), (th.stack(hidden, 1), th.stack(cell, 1))


@th.no_grad()
def _cell(lstm: nn.LSTM, index: int) -> nn.Linear:
    """Return the four gates of one of an LSTM's layers as a linear layer of its input and its hidden state."""
    weights = [getattr(lstm, f"weight_{kind}_l{index}") for kind in ("ih", "hh")]
    joined = th.cat(weights, 1)
    linear = nn.Linear(joined.shape[1], joined.shape[0])
    linear.weight.copy_(joined)
    linear.bias.zero_()
    if lstm.bias:
        linear.bias.copy_(getattr(lstm, f"bias_ih_l{index}") + getattr(lstm, f"bias_hh_l{index}"))
    return linear


@singledispatch
def core(policy: Any) -> Core:
    """Return what stands between the features and the head of a policy.

    Other kinds of memory are registered here, by the policy's class.
    """
    return Core(policy)


@core.register
def _(policy: RecurrentActorCriticPolicy) -> Core:
    return LSTMCore(policy)
