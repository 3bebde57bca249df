"""From the actor's last hidden layer to the action, in plain float32 operations.

With noise as an input, an action is a deterministic function of state and noise whose distribution is the policy's:
μ + L·z with normal z, argmax(log p + g) with Gumbel g, and log p/(1 − p) + l > 0 with logistic l. Noise 0 gives the
deterministic action.
"""

from __future__ import annotations

import copy
from functools import singledispatch
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import (
    MaskableBernoulliDistribution,
    MaskableCategoricalDistribution,
    MaskableMultiCategoricalDistribution,
)
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from torch import Tensor, nn
from torch.nn import functional as F

from sb3_trl.deployment.ports import Port
from sb3_trl.policies.categorical import ProjectedCategoricalDistribution
from sb3_trl.policies.distributions import ProjectedGaussianDistribution, ScaleHead

__all__ = ["Head", "head"]

_FAR = 1e30


class Head(nn.Module):
    """What makes an action of the actor's last hidden layer; subclasses say how.

    :param policy: Whose.
    :param layer: For the means or the logits.
    """

    #: What noise has to be drawn: ``"normal"``, ``"gumbel"`` or ``"logistic"``.
    noise = "normal"

    def __init__(self, policy: Any, layer: nn.Module) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer).cpu()
        self.space = policy.action_space
        self.shape = tuple(int(n) for n in self.space.shape or ())

    @property
    def noise_size(self) -> int:
        """How many numbers are drawn for one action."""
        raise NotImplementedError

    def output(self) -> Port:
        """Return the port of the action."""
        dtype = "float32" if isinstance(self.space, spaces.Box) else np.dtype(self.space.dtype).name
        return Port("action", dtype, self.shape, f"action of {type(self.space).__name__}")

    def forward(self, latent: Tensor, noise: Tensor | None, masks: Tensor | None) -> Tensor:
        """Return the actions.

        :param latent: The actor's last hidden layer, ``(batch, h)``.
        :param noise: ``(batch, noise_size)``; ``None`` for the deterministic action.
        :param masks: What is possible, ``(batch, m)``, bool; ``None`` for everything.
        """
        raise NotImplementedError


# --- Gaussians ---


class GaussianHead(Head):
    """μ + L·z, and what ``predict`` does with it: clipped to the space, or tanh and the space's own scale.

    :param scale: A module that maps the hidden layer and z to L·z; ``None`` where there is no noise.
    """

    def __init__(self, policy: Any, scale: nn.Module | None) -> None:
        super().__init__(policy, policy.action_net)
        self.scale = scale
        self.is_squashed = bool(policy.squash_output)
        low, high = (th.as_tensor(bound, dtype=th.float32).flatten() for bound in (self.space.low, self.space.high))
        self.is_clipped = not self.is_squashed and not bool(low.isinf().all() and high.isinf().all())
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    @property
    def noise_size(self) -> int:
        """How many numbers are drawn for one action."""
        return int(np.prod(self.shape))

    def forward(self, latent: Tensor, noise: Tensor | None, masks: Tensor | None) -> Tensor:
        """Return the actions, as ``Head`` says."""
        low: Any = self.low
        high: Any = self.high
        action = self.layer(latent)
        if noise is not None and self.scale is not None:
            action = action + self.scale(latent, noise)
        if self.is_squashed:
            action = low + 0.5 * (th.tanh(action) + 1.0) * (high - low)
        elif self.is_clipped:
            action = th.minimum(th.maximum(action, low), high)
        return action.reshape(-1, *self.shape)


class ConstantScale(nn.Module):
    """L·z with L that does not depend on the state.

    :param scale: Standard deviations ``(d,)``, or L ``(d, d)``.
    """

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.is_diagonal = scale.dim() == 1
        self.register_buffer("scale", (scale if self.is_diagonal else scale.mT.contiguous()).float().cpu())

    def forward(self, latent: Tensor, noise: Tensor) -> Tensor:
        """Return L·z, ``(batch, d)``."""
        scale: Any = self.scale
        return noise * scale if self.is_diagonal else noise @ scale


class ContextualScale(nn.Module):
    """L·z with L from a linear layer, as ``ScaleHead`` makes it.

    :param head: The policy's, whose scale is contextual.
    """

    def __init__(self, head: ScaleHead) -> None:
        super().__init__()
        assert head.linear is not None
        self.linear = copy.deepcopy(head.linear).cpu()
        self.dim, self.full, self.shift, self.min_std = head.action_dim, head.full, head.shift, head.min_std
        rows, columns = th.tril_indices(self.dim, self.dim, -1)
        places = [*(i * (self.dim + 1) for i in range(self.dim)), *(rows * self.dim + columns).tolist()]
        spread = th.zeros(len(places), self.dim**2)  # from the layer's outputs to the entries of L
        spread[range(len(places)), places] = 1.0
        self.register_buffer("spread", spread)

    def forward(self, latent: Tensor, noise: Tensor) -> Tensor:
        """Return L·z, ``(batch, d)``."""
        spread: Any = self.spread
        raw = self.linear(latent)
        std = F.softplus(raw[..., : self.dim] + self.shift) + self.min_std
        if not self.full:
            return std * noise
        entries = th.cat([std, raw[..., self.dim :]], -1) @ spread
        return (entries.reshape(-1, self.dim, self.dim) * noise.unsqueeze(-2)).sum(-1)


# --- discrete actions ---


class CategoricalHead(Head):
    """argmax(logits + g) of one or several factors.

    :param sizes: How many actions each factor has.
    """

    noise = "gumbel"

    def __init__(self, policy: Any, sizes: list[int]) -> None:
        super().__init__(policy, policy.action_net)
        self.sizes = sizes

    @property
    def noise_size(self) -> int:
        """How many numbers are drawn for one action."""
        return sum(self.sizes)

    def forward(self, latent: Tensor, noise: Tensor | None, masks: Tensor | None) -> Tensor:
        """Return the actions, as ``Head`` says."""
        logits = self.layer(latent)
        if noise is not None:
            logits = logits + noise
        if masks is not None:
            logits = th.where(masks, logits, -_FAR)
        return th.stack([part.argmax(-1) for part in logits.split(self.sizes, -1)], -1).reshape(-1, *self.shape)


class BernoulliHead(Head):
    """Bits: whether the log-odds, plus noise, are above 0.

    :param pairs: Whether the layer has an output for 0 and one for 1, as sb3-contrib's policies with masks have.
    """

    noise = "logistic"

    def __init__(self, policy: Any, pairs: bool = False) -> None:
        super().__init__(policy, policy.action_net)
        self.pairs = pairs

    @property
    def noise_size(self) -> int:
        """How many numbers are drawn for one action."""
        return int(np.prod(self.shape))

    def forward(self, latent: Tensor, noise: Tensor | None, masks: Tensor | None) -> Tensor:
        """Return the actions, as ``Head`` says."""
        odds = self.layer(latent)
        if self.pairs:
            zero, one = odds.reshape(-1, self.noise_size, 2).unbind(-1)
            odds = one - zero
        if noise is not None:
            odds = odds + noise
        if masks is not None:
            zero, one = masks.reshape(-1, self.noise_size, 2).unbind(-1)
            odds = th.where(zero, th.where(one, odds, -_FAR), _FAR)
        return (odds > 0).to(th.int8).reshape(-1, *self.shape)


# --- which of them ---


@singledispatch
def head(distribution: Distribution, policy: Any, noise: bool) -> Head:
    """Return the head of a policy.

    :param distribution: The policy's.
    :param policy: Any of SB3's actor-critic policies.
    :param noise: Whether actions are drawn, with noise as an input.
    :raises ValueError: for a distribution that is not known, or that has no noise of one step.
    """
    raise ValueError(
        f"{type(policy).__name__} acts by a {type(distribution).__name__}, which cannot be exported: known are SB3's "
        "and sb3_trl's Gaussian and categorical distributions."
    )


@head.register
def _(distribution: ProjectedGaussianDistribution, policy: Any, noise: bool) -> Head:
    return GaussianHead(policy, _scale(policy.scale_net) if noise else None)


@head.register
def _(distribution: DiagGaussianDistribution, policy: Any, noise: bool) -> Head:
    return GaussianHead(policy, ConstantScale(policy.log_std.detach().exp()) if noise else None)


@head.register
def _(distribution: StateDependentNoiseDistribution, policy: Any, noise: bool) -> Head:
    if noise:
        raise ValueError(
            "gSDE keeps its noise for several steps, so there is no noise of one step to be an input: export the "
            "deterministic policy, with noise=False."
        )
    return GaussianHead(policy, None)


@head.register
def _(distribution: ProjectedCategoricalDistribution, policy: Any, noise: bool) -> Head:
    return head(distribution.twin, policy, noise)


@head.register(CategoricalDistribution)
@head.register(MaskableCategoricalDistribution)
def _(distribution: Any, policy: Any, noise: bool) -> Head:
    return CategoricalHead(policy, [int(distribution.action_dim)])


@head.register(MultiCategoricalDistribution)
@head.register(MaskableMultiCategoricalDistribution)
def _(distribution: Any, policy: Any, noise: bool) -> Head:
    return CategoricalHead(policy, [int(n) for n in distribution.action_dims])


@head.register
def _(distribution: BernoulliDistribution, policy: Any, noise: bool) -> Head:
    return BernoulliHead(policy)


@head.register
def _(distribution: MaskableBernoulliDistribution, policy: Any, noise: bool) -> Head:
    return BernoulliHead(policy, pairs=True)


@th.no_grad()
def _scale(scale_net: ScaleHead) -> nn.Module:
    if scale_net.linear is not None:
        return ContextualScale(scale_net)
    assert scale_net.raw is not None
    return ConstantScale(scale_net.scale(scale_net.raw))
