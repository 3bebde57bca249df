"""Acting for many seeds at once: the layers of all actors stacked, one pass for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from torch import Tensor, nn

from sb3_trl.lean_actor import LeanActor
from sb3_trl.study.lockstep import FEWEST_TOGETHER, filled

__all__ = ["JointActor"]

#: Maps ``(K, n_envs, features)`` to as much of the next layer.
Layer = Callable[[Tensor], Tensor]

_ELEMENTWISE = (nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus, nn.Sigmoid, nn.Identity)
#: Distributions whose actions are made of noise by sums and comparisons, which round the same anywhere.
_SIMPLE = (DiagGaussianDistribution, CategoricalDistribution, MultiCategoricalDistribution, BernoulliDistribution)
#: Numbers in the widest step of a vector loop, or in several. Torch computes what is left at the end of a loop in
#: another way than the rest, which differs in the last digit.
_STRIDE = 64
#: From so many numbers on, torch cuts a loop into one for each thread.
_ONE_LOOP = 32768


class JointActor:
    """Acts for all seeds at once, where the networks allow it.

    A seed's actions depend neither on the other seeds nor on its place among them, to the last digit. A function of
    single numbers is applied to all seeds at once only where every seed's numbers fill whole vectors.

    :param actors: One for each seed, of one architecture.
    """

    def __init__(self, actors: Sequence[LeanActor]) -> None:
        self.actors = actors
        self._stack()

    def refresh(self, changed: Sequence[int]) -> None:
        """Look again at the policies of some seeds, which somebody has changed."""
        for index in changed:
            self.actors[index].refresh()
        if changed:
            self._stack()

    def _stack(self) -> None:
        """Stack what the actors are made of now."""
        actors = self.actors
        rows = filled(actors, FEWEST_TOGETHER)
        n_envs, device = actors[0].noise.shape[1], actors[0].device
        self._is_joint = all(actor.is_plain and _is_linear([actor.layers[-1]]) for actor in actors)
        if not self._is_joint:
            return
        with th.no_grad():
            self._layers = [_joint(layers, len(actors)) for layers in zip(*(a.layers for a in rows), strict=True)]
        self._noise = th.stack([actor.noise for actor in rows], 1).unbind()  # of each step: (K, n_envs, d)
        self._combines = [actor.combine for actor in actors]
        self._combines_at_once = all(_combines_anywhere(actor) for actor in actors)
        shape = actors[0].policy.observation_space.shape
        assert shape is not None
        self._inputs = np.zeros((len(rows), n_envs, *shape), np.float32)
        self._tensor, self._device = th.from_numpy(self._inputs), device

    def act(self, observations: Sequence[Any], step: int) -> list[Any]:
        """Return the actions of one step of every seed, ``(n_envs, *action_shape)`` each.

        :param observations: Of every seed, as its environments return them. Of one that was stopped by a callback
            they are ``None``, and its actions mean nothing.
        :param step: Which step of the rollout.
        """
        if not self._is_joint:
            pairs = zip(self.actors, observations, strict=True)
            return [None if own is None else actor.act(own, step) for actor, own in pairs]
        for index, own in enumerate(observations):
            if own is not None:
                self._inputs[index] = own
        with th.no_grad():
            x = self._tensor.to(self._device)
            for layer in self._layers:
                x = layer(x)
            actions = self._combine(x, self._noise[step]).cpu().numpy()
        return list(actions.reshape(len(actions), -1, *self.actors[0].action_shape)[: len(self.actors)])

    def _combine(self, x: Tensor, noise: Tensor) -> Tensor:
        if self._combines_at_once:
            return self._combines[0](x, noise)
        own = zip(self._combines, x.unbind(), noise.unbind(), strict=False)  # not of the copies that fill up
        return th.stack([combine(parameters, noise) for combine, parameters, noise in own])


def _joint(layers: Sequence[Any], n_seeds: int) -> Layer:
    """Return the same layer of all seeds, the last of which may be copies to fill up, as one function."""
    if _is_linear(layers):
        weight = th.stack([layer.weight.mT for layer in layers])
        bias = th.stack([layer.bias for layer in layers]).unsqueeze(1)
        return lambda x: th.baddbmm(bias, x, weight)
    own = layers[:n_seeds]

    def one_by_one(x: Tensor) -> Tensor:
        results = [layer(part) for layer, part in zip(own, x.unbind(), strict=False)]
        return th.stack(filled(results, len(layers)))

    if any(type(layer) not in _ELEMENTWISE or _has_hooks(layer) for layer in own):
        return one_by_one
    at_once: Layer = own[0]
    return lambda x: at_once(x) if x[0].numel() % _STRIDE == 0 and x.numel() < _ONE_LOOP else one_by_one(x)


def _is_linear(layers: Sequence[Any]) -> bool:
    return all(type(layer) is nn.Linear and layer.bias is not None and not _has_hooks(layer) for layer in layers)


def _has_hooks(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _combines_anywhere(actor: LeanActor) -> bool:
    return actor.combine is th.add or type(actor.policy.action_dist) in _SIMPLE
