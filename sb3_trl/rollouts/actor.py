"""The actor alone, acting for a rollout: noise drawn in advance, and layers called with nothing around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor, nn

from sb3_trl.policies.actor_critic import MlpPolicy
from sb3_trl.policies.categorical import ProjectedCategoricalDistribution
from sb3_trl.policies.direct import has_hooks
from sb3_trl.policies.distributions import ProjectedGaussianDistribution
from sb3_trl.policies.masks import masked_bits, masked_logits
from sb3_trl.projections import Gaussian

__all__ = ["ACTIVATIONS", "IN_PLACE", "LeanActor"]

#: Noise as the actor adds it, the layer after the last hidden one, and the function that makes actions of its output
#: and one step's noise.
Sampler: TypeAlias = tuple[Tensor, Callable[[Tensor], Any], Callable[[Any, Tensor], Tensor]]

#: Activations that are functions of their input alone.
ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus, nn.Sigmoid, nn.Identity)
#: What some of them are where the input is nobody else's.
IN_PLACE: dict[type, Callable[[Tensor], Tensor]] = {nn.Tanh: th.tanh_, nn.ReLU: th.relu_, nn.Sigmoid: th.sigmoid_}


class LeanActor:
    """The actor of a policy, acting with noise that was drawn for the whole rollout.

    Gaussians: μ + L·noise. Discrete actions: the largest of logit + Gumbel noise, which is a draw from the softmax
    of the logits. Bits: logit + logistic noise > 0.

    Acts with the policy of the moment at which it was made or last refreshed.

    :param policy: One that ``can_collect``.
    :param n_steps: Length of the rollout.
    :param n_envs: Number of environments.
    :param kept_features: Receives every step's features, unless the layers see the observations as they are.
    """

    def __init__(
        self, policy: ActorCriticPolicy, n_steps: int, n_envs: int, kept_features: list[Tensor] | None = None
    ) -> None:
        self.policy = policy
        self.kept_features = kept_features
        self.n_envs = n_envs
        self.action_shape = policy.action_space.shape or ()
        self.device = policy.device
        self._drawn = draw(policy.action_dist, (n_steps, n_envs)).to(self.device)
        self.refresh()

    def refresh(self) -> None:
        """Look at the policy again, which somebody has changed. The noise that was drawn stays."""
        policy = self.policy
        with th.no_grad():
            self.noise, head, self.combine = sampler(policy.action_dist, policy, self._drawn)
        self.layers = [*policy.mlp_extractor.policy_net, head]
        self._functions = functions(self.layers)
        is_flat = isinstance(policy.observation_space, spaces.Box) and len(policy.observation_space.shape) == 1
        #: Whether the layers see the observations as they are.
        self.is_plain = is_flat and type(policy.pi_features_extractor) is FlattenExtractor
        self._noise_of_step = self.noise.unbind()
        # Nothing to transfer, and nothing that gradients could flow through.
        is_detached = all(function is not layer for function, layer in zip(self._functions, self.layers, strict=True))
        self._is_bare = self.is_plain and is_detached and self.device.type == "cpu"
        if self._is_bare:
            self._input = np.empty((self.n_envs, *policy.observation_space.shape), np.float32)  # type: ignore[misc]
            self._input_tensor = th.from_numpy(self._input)

    def act(self, observations: Any, step: int, masks: np.ndarray | None = None) -> np.ndarray:
        """Return the actions of one step, ``(n_envs, *action_shape)``.

        :param observations: As the environments return them.
        :param step: Which step of the rollout.
        :param masks: Which actions are possible, ``(n_envs, m)``; ``None`` for all.
        """
        if self._is_bare:
            # To write into a tensor that is there is quicker than to make one and convert it.
            np.copyto(self._input, observations)
            actions = self._forward(self._input_tensor, step, masks).numpy()
        else:
            with th.no_grad():
                features = self._features(obs_as_tensor(observations, self.device))
                if self.kept_features is not None and not self.is_plain:
                    self.kept_features.append(features)
                actions = self._forward(features, step, masks).cpu().numpy()
        return self._in_shape(actions)

    def _in_shape(self, actions: np.ndarray) -> np.ndarray:
        return actions if len(self.action_shape) == 1 else actions.reshape(-1, *self.action_shape)

    def _forward(self, x: Any, step: int, masks: np.ndarray | None) -> Tensor:
        for function in self._functions:
            x = function(x)
        if masks is not None:
            without_impossible = (
                masked_bits if isinstance(self.policy.action_space, spaces.MultiBinary) else masked_logits
            )
            x = without_impossible(x, th.as_tensor(masks, device=self.device))
        return self.combine(x, self._noise_of_step[step])

    def _features(self, observations: Any) -> Tensor:
        if self.is_plain:
            return observations.float()
        return BasePolicy.extract_features(self.policy, observations, self.policy.pi_features_extractor)


def functions(layers: Sequence[Any]) -> list[Callable[[Any], Any]]:
    """Return what layers do one after the other, without gradients and the calls around them that serve their hooks.

    A layer of an unknown kind, or with hooks, is returned itself. What follows a linear layer overwrites its output,
    which nobody else sees.
    """
    short = [_function(layer) for layer in layers]
    is_short = [function is not layer for function, layer in zip(short, layers, strict=True)]
    for index, (previous, layer) in enumerate(pairwise(layers), 1):
        if type(previous) is nn.Linear and is_short[index - 1] and is_short[index]:
            short[index] = IN_PLACE.get(type(layer), short[index])
    return short


def _function(layer: Any) -> Callable[[Any], Any]:
    if has_hooks(layer):
        return layer
    if type(layer) is nn.Linear:
        weight, bias = layer.weight.detach().t(), layer.bias.detach()
        return lambda x: th.addmm(bias, x, weight)
    return layer.forward if type(layer) in ACTIVATIONS else layer


def _side_by_side(*layers: nn.Linear) -> nn.Linear:
    """Return one layer for what several make of the same input, their outputs one after the other."""
    size, like = sum(layer.out_features for layer in layers), layers[0].weight
    joined = nn.utils.skip_init(nn.Linear, like.shape[1], size, device=like.device, dtype=like.dtype)
    for name, parameter in joined.named_parameters():
        parameter.data = th.cat([getattr(layer, name).detach() for layer in layers])
    return joined


# --- noise, by the kind of the distribution ---


@singledispatch
def draw(distribution: Distribution, shape: tuple[int, int]) -> Tensor:
    """Return the noise of ``shape`` (steps, environments), whatever the policy."""
    raise TypeError(f"No noise is known for {type(distribution).__name__}.")


@draw.register(ProjectedGaussianDistribution)
@draw.register(DiagGaussianDistribution)
def _(distribution: Any, shape: tuple[int, int]) -> Tensor:
    return th.randn(*shape, distribution.action_dim)


@draw.register
def _(distribution: ProjectedCategoricalDistribution, shape: tuple[int, int]) -> Tensor:
    return draw(distribution.twin, shape)


@draw.register
def _(distribution: CategoricalDistribution, shape: tuple[int, int]) -> Tensor:
    return _gumbel(*shape, distribution.action_dim)


@draw.register
def _(distribution: MultiCategoricalDistribution, shape: tuple[int, int]) -> Tensor:
    return _gumbel(*shape, sum(int(n) for n in distribution.action_dims))


@draw.register
def _(distribution: BernoulliDistribution, shape: tuple[int, int]) -> Tensor:
    size = distribution.action_dims
    return _gumbel(*shape, size) - _gumbel(*shape, size)


def _gumbel(*shape: int) -> Tensor:
    return -th.empty(shape).exponential_().log()


# --- how it becomes actions ---


@singledispatch
def sampler(distribution: Distribution, policy: ActorCriticPolicy, noise: Tensor) -> Sampler:
    """Return the noise as the actor adds it, the actor's last layer, and how the two make actions."""
    raise TypeError(f"No noise is known for {type(distribution).__name__}.")


@sampler.register
def _(distribution: ProjectedGaussianDistribution, policy: MlpPolicy, noise: Tensor) -> Sampler:
    head, scale_net = policy.action_net, policy.scale_net
    if scale_net.linear is None:
        return distribution.from_outputs(noise[0], scale_net(noise)).unwhiten(noise), head, th.add

    def act(gaussian: Gaussian, noise: Tensor) -> Tensor:
        return gaussian.mean + gaussian.unwhiten(noise)

    if type(head) is not nn.Linear or any(map(has_hooks, (head, scale_net, scale_net.linear))):
        return noise, lambda latent: distribution.from_outputs(head(latent), scale_net(latent)), act

    def combine(parameters: Tensor, noise: Tensor) -> Tensor:
        mean, raw = parameters.split((head.out_features, parameters.shape[-1] - head.out_features), -1)
        return act(distribution.from_outputs(mean, scale_net.scale(raw)), noise)

    return noise, _side_by_side(head, scale_net.linear), combine


@sampler.register
def _(distribution: ProjectedCategoricalDistribution, policy: MlpPolicy, noise: Tensor) -> Sampler:
    return sampler(distribution.twin, policy, noise)


@sampler.register
def _(distribution: DiagGaussianDistribution, policy: ActorCriticPolicy, noise: Tensor) -> Sampler:
    return noise * policy.log_std.exp(), policy.action_net, th.add


@sampler.register
def _(distribution: CategoricalDistribution, policy: ActorCriticPolicy, noise: Tensor) -> Sampler:
    return noise, policy.action_net, lambda logits, noise: (logits + noise).argmax(-1)


@sampler.register
def _(distribution: MultiCategoricalDistribution, policy: ActorCriticPolicy, noise: Tensor) -> Sampler:
    sizes = [int(n) for n in distribution.action_dims]

    def combine(logits: Tensor, noise: Tensor) -> Tensor:
        return th.stack([part.argmax(-1) for part in (logits + noise).split(sizes, -1)], -1)

    return noise, policy.action_net, combine


@sampler.register
def _(distribution: BernoulliDistribution, policy: ActorCriticPolicy, noise: Tensor) -> Sampler:
    return noise, policy.action_net, lambda logits, noise: (logits + noise > 0).float()
