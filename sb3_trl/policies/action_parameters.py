"""The parameters of SB3's action distributions as plain tensors: kept, indexed, and compared by KL divergence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, TypeAlias

import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from sb3_trl.policies.actor_critic import TRPLPolicy
from sb3_trl.policies.categorical import ProjectedCategoricalDistribution
from sb3_trl.policies.distributions import ProjectedGaussianDistribution
from sb3_trl.policies.families import BERNOULLI, CATEGORICAL, DIAGONAL, FULL, Family, Parameters, family_of_gsde
from sb3_trl.policies.forward import actor_latent, latents
from sb3_trl.policies.masks import unmasked
from sb3_trl.policies.parameters import parameters_behind
from sb3_trl.projections import Categorical, Gaussian
from sb3_trl.table import Table, table

__all__ = [
    "ActionParameters",
    "Actions",
    "ActionsAndValues",
    "action_parameters",
    "actor_parameters",
    "join",
]

#: Maps a policy and its actor's last hidden layer to the action parameters.
Head: TypeAlias = Callable[[ActorCriticPolicy, Tensor], "ActionParameters"]


@dataclass(frozen=True)
class ActionParameters:
    """What an action distribution is at n states, apart from the object that SB3 refills.

    :param tensors: Its parameters, n rows each.
    :param family: Its kind.
    """

    tensors: Parameters
    family: Family

    def kl(self, other: ActionParameters) -> Tensor:
        """Return KL(self ‖ other) in nats, differentiable in both; shape ``(n,)``."""
        return self.family.kl(self.tensors, other.tensors)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log-probability of one action per state; shape ``(n,)``."""
        return self.family.log_prob(self.tensors, actions)

    def entropy(self) -> Tensor | None:
        """Return the entropy in nats, ``(n,)``; ``None`` where there is no closed form."""
        return self.family.entropy(self.tensors)

    def double(self) -> ActionParameters:
        """Return the same parameters in float64, in which divergences are compared with bounds."""
        return ActionParameters(tuple(t.double() for t in self.tensors), self.family)

    def masked(self, masks: Tensor) -> ActionParameters:
        """Return the parameters without what is impossible.

        :param masks: ``(n, m)``, as ``policies.masks`` has them.
        """
        return ActionParameters(self.family.masked(self.tensors, masks), self.family)

    def total(self) -> Tensor:
        """Return the sum of all parameters, a scalar that depends on every one of them."""
        return th.stack([t.sum() for t in self.tensors]).sum()


@table.register
def _(data: ActionParameters) -> Table:
    kind = (ActionParameters, data.family, len(data.tensors))
    return Table(data.tensors, (), lambda rows, shared: ActionParameters(tuple(rows), data.family), kind)


class Actions(nn.Module):
    """The action parameters of an actor-critic policy, as tensors alone.

    :param policy: Any of SB3's, with a distribution that ``action_parameters`` knows.
    :raises FloatingPointError: by calls, where torch makes no distribution of what the policy says because it is not
        finite; only for policies and distributions of other packages, the others are then not finite themselves.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy
        known = head.dispatch(type(policy.action_dist))  # compiled code cannot choose by type
        is_known = known is not head.dispatch(object) and type(policy)._get_action_dist_from_latent in _OWN_HEADS
        self._head = head(policy.action_dist) if is_known else None

    @property
    def is_pure(self) -> bool:
        """Whether they are a function of tensors alone, which can be compiled."""
        return self._head is not None

    def forward(self, observations: Any) -> Any:
        """Return them at a batch of observations."""
        observations, masks = unmasked(observations)
        return self._actions(actor_latent(self.policy, observations), masks)

    def _actions(self, latent: Tensor, masks: Tensor | None) -> ActionParameters:
        actions = self._unmasked_actions(latent)
        return actions if masks is None else actions.masked(masks)

    def _unmasked_actions(self, latent: Tensor) -> ActionParameters:
        if self._head is not None:
            return self._head(self.policy, latent)
        try:
            distribution = self.policy._get_action_dist_from_latent(latent)
        except ValueError as error:
            raise FloatingPointError(f"The policy's action distribution cannot be made: {error}") from error
        return action_parameters(distribution)


class ActionsAndValues(Actions):
    """The action parameters and the values ``(batch, 1)`` of an actor-critic policy, as tensors alone."""

    def forward(self, observations: Any) -> tuple[ActionParameters, Tensor]:
        """Return both at a batch of observations."""
        observations, masks = unmasked(observations)
        latent_pi, latent_vf = latents(self.policy, observations)
        return self._actions(latent_pi, masks), self.policy.value_net(latent_vf)


def actor_parameters(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    """Return the parameters that a policy's actions depend on, frozen ones among them."""
    return parameters_behind(policy, lambda x: Actions(policy)(x).total(), policy.pi_features_extractor)


def join(parts: Sequence[ActionParameters]) -> ActionParameters:
    """Return the parameters of several batches of states as one."""
    tensors = zip(*(part.tensors for part in parts), strict=True)
    return ActionParameters(tuple(th.cat(column) for column in tensors), parts[0].family)


# --- from the objects of SB3 ---


@singledispatch
def action_parameters(distribution: Distribution) -> ActionParameters:
    """Return the parameters of a distribution, with their gradient history.

    Knows every distribution for which SB3 has a closed form of the divergence: diagonal Gaussian, gSDE's,
    categorical, multi-categorical, Bernoulli, and this package's Gaussians.

    :raises TypeError: for any other.
    """
    raise TypeError(
        f"No KL divergence is known for {type(distribution).__name__}: register one with "
        "sb3_trl.policies.action_parameters.action_parameters.register."
    )


@action_parameters.register
def _(distribution: DiagGaussianDistribution) -> ActionParameters:
    normal = distribution.distribution
    return ActionParameters((normal.mean, normal.stddev), DIAGONAL)


@action_parameters.register
def _(distribution: StateDependentNoiseDistribution) -> ActionParameters:
    normal = distribution.distribution
    return ActionParameters((normal.mean, normal.stddev), family_of_gsde(distribution))


@action_parameters.register
def _(distribution: ProjectedGaussianDistribution) -> ActionParameters:
    return _of_gaussian(distribution.gaussian)


@action_parameters.register
def _(distribution: ProjectedCategoricalDistribution) -> ActionParameters:
    return _of_categorical(distribution.categorical)


@action_parameters.register
def _(distribution: CategoricalDistribution) -> ActionParameters:
    return ActionParameters((distribution.distribution.logits,), CATEGORICAL)


@action_parameters.register
def _(distribution: MultiCategoricalDistribution) -> ActionParameters:
    return ActionParameters(tuple(factor.logits for factor in distribution.distribution), CATEGORICAL)


@action_parameters.register
def _(distribution: BernoulliDistribution) -> ActionParameters:
    return ActionParameters((distribution.distribution.logits,), BERNOULLI)


# --- from the actor's last hidden layer, without those objects ---

#: Policies whose heads are those below; a class that overrides this method has a head of its own.
_OWN_HEADS = (ActorCriticPolicy._get_action_dist_from_latent, TRPLPolicy._get_action_dist_from_latent)


@singledispatch
def head(distribution: Distribution) -> Head:
    """Return what makes of the latent state what ``action_parameters`` returns; a function that can be compiled."""
    raise TypeError(f"{type(distribution).__name__} is known as an object only.")


@head.register
def _(distribution: ProjectedGaussianDistribution) -> Head:
    def gaussian(policy: Any, latent: Tensor) -> ActionParameters:
        return _of_gaussian(distribution.from_outputs(policy.action_net(latent), policy.scale_net(latent)))

    return gaussian


@head.register
def _(distribution: ProjectedCategoricalDistribution) -> Head:
    return lambda policy, latent: _of_categorical(distribution.from_outputs(policy.action_net(latent)))


@head.register
def _(distribution: DiagGaussianDistribution) -> Head:
    def gaussian(policy: ActorCriticPolicy, latent: Tensor) -> ActionParameters:
        mean = policy.action_net(latent)
        return ActionParameters((mean, policy.log_std.exp().expand_as(mean)), DIAGONAL)

    return gaussian


@head.register
def _(distribution: StateDependentNoiseDistribution) -> Head:
    family = family_of_gsde(distribution)

    def gaussian(policy: ActorCriticPolicy, latent: Tensor) -> ActionParameters:
        features = latent if distribution.learn_features else latent.detach()
        variance = th.mm(features**2, distribution.get_std(policy.log_std) ** 2)
        return ActionParameters((policy.action_net(latent), th.sqrt(variance + distribution.epsilon)), family)

    return gaussian


@head.register
def _(distribution: CategoricalDistribution) -> Head:
    return lambda policy, latent: ActionParameters((policy.action_net(latent).log_softmax(-1),), CATEGORICAL)


@head.register
def _(distribution: MultiCategoricalDistribution) -> Head:
    sizes = [int(n) for n in distribution.action_dims]  # NumPy's numbers cannot be compiled

    def categories(policy: ActorCriticPolicy, latent: Tensor) -> ActionParameters:
        parts = policy.action_net(latent).split(sizes, -1)
        return ActionParameters(tuple(part.log_softmax(-1) for part in parts), CATEGORICAL)

    return categories


@head.register
def _(distribution: BernoulliDistribution) -> Head:
    return lambda policy, latent: ActionParameters((policy.action_net(latent),), BERNOULLI)


def _of_gaussian(gaussian: Gaussian) -> ActionParameters:
    event = gaussian.scale.shape[-1:] if gaussian.is_diagonal else gaussian.scale.shape[-2:]
    scale = gaussian.scale.expand(*gaussian.mean.shape[:-1], *event)
    return ActionParameters((gaussian.mean, scale), DIAGONAL if gaussian.is_diagonal else FULL)


def _of_categorical(categorical: Categorical) -> ActionParameters:
    return ActionParameters(categorical.log_probs.unbind(-2), CATEGORICAL)
