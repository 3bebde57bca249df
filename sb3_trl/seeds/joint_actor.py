"""Acting for many seeds at once: the layers of all actors stacked, one pass for all."""

from __future__ import annotations

import math
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

from sb3_trl.policies.categorical import ProjectedCategoricalDistribution
from sb3_trl.policies.direct import has_hooks
from sb3_trl.policies.distributions import ProjectedGaussianDistribution
from sb3_trl.rollouts.actor import ACTIVATIONS, IN_PLACE, LeanActor
from sb3_trl.seeds.lockstep import FEWEST_TOGETHER, filled

__all__ = ["JointActor"]

#: Maps ``(K, n_envs, features)`` to as much of the next layer.
Layer = Callable[[Tensor], Tensor]

#: Distributions whose actions are made of noise by sums and comparisons, which round the same anywhere.
_SIMPLE = (
    DiagGaussianDistribution,
    CategoricalDistribution,
    MultiCategoricalDistribution,
    BernoulliDistribution,
    ProjectedCategoricalDistribution,
)
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
        self._put_together()

    def refresh(self, changed: Sequence[int]) -> None:
        """Look again at the policies of some seeds, which somebody has changed."""
        for index in changed:
            self.actors[index].refresh()
        if changed:
            self._put_together()

    @th.no_grad()
    def _put_together(self) -> None:
        """Stack what the actors hold now, if that can be done."""
        self._is_joint = all(actor.is_plain and _is_linear([actor.layers[-1]]) for actor in self.actors)
        if not self._is_joint:
            return
        rows = filled(self.actors, FEWEST_TOGETHER)
        noise = th.stack([actor.noise for actor in rows], 1)
        self._noise = noise.unbind()  # of each step: (K, n_envs, d)
        shape = (len(rows), noise.shape[2])
        self._layers: list[Layer] = []
        previous = None
        for layers in zip(*(actor.layers for actor in rows), strict=True):
            own = layers[: len(self.actors)]
            self._layers.append(_product(layers) if _is_linear(layers) else _activation(own, previous, shape))
            previous = layers[0]
        self._combine = _combination(self.actors, shape)
        observation = rows[0].policy.observation_space.shape
        assert observation is not None
        self._inputs = np.zeros((*shape, *observation), np.float32)
        self._tensor = th.from_numpy(self._inputs)

    def act(self, observations: Sequence[Any], step: int, masks: Sequence[np.ndarray | None]) -> list[Any]:
        """Return the actions of one step of every seed, ``(n_envs, *action_shape)`` each.

        :param observations: Of every seed, as its environments return them. Of one that was stopped by a callback
            they are ``None``, and its actions mean nothing.
        :param step: Which step of the rollout.
        :param masks: Of every seed, which actions are possible; ``None`` for all.
        """
        if not self._is_joint or any(own is not None for own in masks):
            seeds = zip(self.actors, observations, masks, strict=True)
            return [None if own is None else actor.act(own, step, possible) for actor, own, possible in seeds]
        for index, own in enumerate(observations):
            if own is not None:
                self._inputs[index] = own
        with th.no_grad():
            x = self._tensor.to(self.actors[0].device)
            for layer in self._layers:
                x = layer(x)
            actions = self._combine(x, self._noise[step]).cpu().numpy()
        return list(actions.reshape(len(actions), -1, *self.actors[0].action_shape)[: len(self.actors)])


def _product(layers: Sequence[nn.Linear]) -> Layer:
    """Return the linear layers of all seeds as one function."""
    weight = th.stack([layer.weight.mT for layer in layers])
    bias = th.stack([layer.bias for layer in layers]).unsqueeze(1)
    return lambda x: th.baddbmm(bias, x, weight)


def _activation(layers: Sequence[Any], previous: Any, shape: tuple[int, int]) -> Layer:
    """Return another layer of all seeds as one function, which calls one after the other if it must.

    :param layers: The layer of every seed.
    :param previous: The layer before it.
    :param shape: K, with what fills up, and n_envs.
    """
    n_rows, n_envs = shape

    def one_by_one(x: Tensor) -> Tensor:
        results = [layer(part) for layer, part in zip(layers, x.unbind(), strict=False)]
        return th.stack(filled(results, n_rows))

    if not _is_linear([previous]) or any(type(layer) not in ACTIVATIONS or has_hooks(layer) for layer in layers):
        return one_by_one
    own_numbers = n_envs * previous.out_features
    if own_numbers % _STRIDE or n_rows * own_numbers >= _ONE_LOOP:
        return one_by_one
    return IN_PLACE.get(type(layers[0]), layers[0])  # what a product returned is nobody else's


def _combination(actors: Sequence[LeanActor], shape: tuple[int, int]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function that makes actions of the last layer's output and noise, of all seeds."""
    combine, distribution = actors[0].combine, actors[0].policy.action_dist
    if combine is th.add or type(distribution) in _SIMPLE:
        return combine
    n_rows, n_envs = shape
    size = actors[0].noise.shape[2]
    whole = _STRIDE // math.gcd(size, _STRIDE)
    n_padded = -(-n_envs // whole) * whole  # environments whose numbers fill whole vectors
    if type(distribution) is not ProjectedGaussianDistribution or distribution.covariance != "diag":
        n_padded = _ONE_LOOP

    def one_by_one(x: Tensor, noise: Tensor) -> Tensor:
        own = zip(actors, x.unbind(), noise.unbind(), strict=False)  # not of the copies that fill up
        return th.stack([actor.combine(parameters, part) for actor, parameters, part in own])

    if n_rows * n_padded * size >= _ONE_LOOP:
        return one_by_one
    all_parameters, all_noise = (th.zeros(n_rows, n_padded, n * size, device=actors[0].device) for n in (2, 1))
    own_parameters, own_noise = all_parameters[:, :n_envs], all_noise[:, :n_envs]

    def padded(x: Tensor, noise: Tensor) -> Tensor:
        own_parameters.copy_(x)
        own_noise.copy_(noise)
        return combine(all_parameters, all_noise)[:, :n_envs]

    return padded


def _is_linear(layers: Sequence[Any]) -> bool:
    return all(type(layer) is nn.Linear and layer.bias is not None and not has_hooks(layer) for layer in layers)
