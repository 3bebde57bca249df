"""The categorical action distribution of ``TRPLPolicy`` on discrete action spaces, as Stable-Baselines3 asks for it."""

from __future__ import annotations

import math
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    Distribution,
    MultiCategoricalDistribution,
    make_proba_distribution,
)
from torch import nn
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Distribution as TorchDistribution
from torch.distributions import Independent
from torch.nn import functional as F

from sb3_trl.projections import Categorical, TrustRegionLayer

__all__ = ["DISCRETE", "ProjectedCategoricalDistribution"]

#: Action spaces of categorical policies.
DISCRETE = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class ProjectedCategoricalDistribution(Distribution):
    """Independent categoricals, one or several, that a ``TrustRegionLayer`` can project.

    The policy acts with it as it is; only the loss looks at its projection (``projected``). The network's outputs are
    those of SB3's policies: a logit for every action, and for a ``MultiBinary`` one for every bit.

    :param action_space: ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``.
    """

    categorical: Categorical
    bound_names = Categorical.bound_names

    def __init__(self, action_space: spaces.Space) -> None:
        super().__init__()
        self.action_space = action_space
        #: SB3's distribution of the same space, which has the same outputs.
        self.twin: Any = make_proba_distribution(action_space)
        assert isinstance(self.twin, CategoricalDistribution | MultiCategoricalDistribution | BernoulliDistribution)
        #: How many actions each factor has.
        self.sizes = _sizes(self.twin)

    @property
    def predicted(self) -> Categorical:
        """The distribution as projections know it."""
        return self.categorical

    @property
    def distribution(self) -> TorchDistribution:  # type: ignore[override]
        """The same as a ``torch.distributions`` object: SB3's for one factor, one event per action for several."""
        log_probs = self.categorical.log_probs
        if self._is_single:
            return TorchCategorical(logits=log_probs.squeeze(-2), validate_args=False)
        return Independent(TorchCategorical(logits=log_probs, validate_args=False), 1, validate_args=False)

    def proba_distribution_net(self, latent_dim: int) -> nn.Linear:
        """Create the layer for the logits.

        :param latent_dim: Size of the actor's last hidden layer.
        """
        return self.twin.proba_distribution_net(latent_dim)

    def proba_distribution(self, action_logits: th.Tensor) -> ProjectedCategoricalDistribution:
        """Set the parameters of the distribution.

        :param action_logits: ``(batch, n)``.
        """
        return self.with_categorical(self.from_outputs(action_logits))

    def from_outputs(self, action_logits: th.Tensor) -> Categorical:
        """Return the categoricals with these parameters, as in ``proba_distribution``."""
        if isinstance(self.twin, BernoulliDistribution):
            return Categorical.from_bernoulli_logits(action_logits)
        return Categorical.from_logits(action_logits, self.sizes)

    def without_impossible(self, categorical: Categorical, action_masks: th.Tensor) -> Categorical:
        """Return categoricals of this space without what is impossible.

        :param categorical: n of them.
        :param action_masks: Which actions are possible, ``(n, m)``: one entry for each action of each factor.
        """
        widest = max(self.sizes)
        parts = [F.pad(part, (0, widest - part.shape[-1])) for part in action_masks.split(self.sizes, -1)]
        log_probs = categorical.log_probs.masked_fill(~th.stack(parts, -2), -math.inf)
        return Categorical(log_probs.log_softmax(-1))

    def masked(self, action_masks: th.Tensor) -> ProjectedCategoricalDistribution:
        """Take what is impossible out of the distribution, and return it; see ``without_impossible``."""
        return self.with_categorical(self.without_impossible(self.categorical, action_masks))

    def with_categorical(self, categorical: Categorical) -> ProjectedCategoricalDistribution:
        """Hold ``categorical`` from now on, and return the distribution itself."""
        self.categorical = categorical
        return self

    def projected(
        self, layer: TrustRegionLayer, old: Categorical | ProjectedCategoricalDistribution, **bounds: Any
    ) -> ProjectedCategoricalDistribution:
        """Return the distribution under π̃, the projection of this one onto the trust region around ``old``.

        :param layer: The trust region.
        :param old: The policy that collected the data.
        :param bounds: ``kl_bound``, ``entropy_bound``, where they differ from the layer's own.
        """
        old = old.categorical if isinstance(old, ProjectedCategoricalDistribution) else old
        twin = ProjectedCategoricalDistribution(self.action_space)
        return twin.with_categorical(layer(self.categorical, old, **bounds))

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """Return the log-probability of the actions; shape ``(batch,)``."""
        return self.categorical.log_prob(actions.reshape(-1, self.categorical.dim))

    def entropy(self) -> th.Tensor:
        """Return the entropy in nats; shape ``(batch,)``."""
        return self.categorical.entropy()

    def sample(self) -> th.Tensor:
        """Draw actions, as SB3 has them: ``(batch,)`` for one factor, else ``(batch, factors)``."""
        return self._as_actions(self.categorical.sample())

    def mode(self) -> th.Tensor:
        """Return the likeliest actions, in the same form."""
        return self._as_actions(self.categorical.mode())

    def actions_from_params(self, action_logits: th.Tensor, deterministic: bool = False) -> th.Tensor:
        """Return actions drawn with the given logits, the likeliest if ``deterministic``."""
        return self.proba_distribution(action_logits).get_actions(deterministic=deterministic)

    def log_prob_from_params(self, action_logits: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return actions drawn with the given logits, and their log-probabilities."""
        actions = self.actions_from_params(action_logits)
        return actions, self.log_prob(actions)

    @property
    def _is_single(self) -> bool:
        return isinstance(self.twin, CategoricalDistribution)

    def _as_actions(self, chosen: th.Tensor) -> th.Tensor:
        if self._is_single:
            return chosen.squeeze(-1)
        return chosen.float() if isinstance(self.twin, BernoulliDistribution) else chosen


def _sizes(distribution: Any) -> list[int]:
    """Return the sizes as numbers of Python, which compiled code takes for constants."""
    if isinstance(distribution, CategoricalDistribution):
        return [int(distribution.action_dim)]
    if isinstance(distribution, BernoulliDistribution):
        return [2] * int(distribution.action_dims)
    return [int(n) for n in distribution.action_dims]
