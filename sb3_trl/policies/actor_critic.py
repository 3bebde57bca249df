"""Actor-critic policies whose Gaussian can be projected onto a trust region."""

from __future__ import annotations

import copy
import inspect
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_trl.moved import old_modules
from sb3_trl.policies.categorical import DISCRETE, ProjectedCategoricalDistribution
from sb3_trl.policies.distributions import ProjectedGaussianDistribution
from sb3_trl.policies.forward import actor_latent, critic_latent, latents
from sb3_trl.policies.masks import unmasked
from sb3_trl.policies.parameters import parameters_behind
from sb3_trl.projections import Gaussian

__all__ = [
    "GAUSSIAN_ARGUMENTS",
    "CnnPolicy",
    "MlpPolicy",
    "MultiInputPolicy",
    "SingleOptimizerPolicy",
    "TRPLCnnPolicy",
    "TRPLMultiInputPolicy",
    "TRPLPolicy",
]


#: Arguments of the policy that mean nothing where actions are discrete.
GAUSSIAN_ARGUMENTS = ("covariance", "contextual_std", "init_std", "min_std")

ProjectedDistribution: TypeAlias = ProjectedGaussianDistribution | ProjectedCategoricalDistribution


class TRPLPolicy(ActorCriticPolicy):
    """SB3's actor-critic policy with a distribution that can be projected and separate actor and critic.

    In a ``Box`` it is a ``ProjectedGaussianDistribution``, in discrete spaces a ``ProjectedCategoricalDistribution``.

    The critic has an optimiser of its own, unless the two networks share parameters
    (``share_features_extractor=True`` with an extractor that has any).

    :param observation_space: Observation space.
    :param action_space: Action space: ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``.
    :param lr_schedule: The actor's learning rate.
    :param covariance: ``"diag"`` or ``"full"``.
    :param contextual_std: Whether the covariance depends on the state.
    :param init_std: Standard deviation of the untrained policy, in the actions' own units.
    :param min_std: Smallest standard deviation.
    :param net_arch: As in SB3; two layers of 64 for each network by default.
    :param activation_fn: As in SB3.
    :param ortho_init: Orthogonal initialisation: gain √2 for hidden layers, 0.01 for mean and contextual std,
        1 for the value.
    :param use_sde: Not available.
    :param features_extractor_class: As in SB3.
    :param features_extractor_kwargs: As in SB3.
    :param share_features_extractor: Whether actor and critic share the features extractor.
    :param normalize_images: As in SB3.
    :param optimizer_class: As in SB3.
    :param optimizer_kwargs: As in SB3; for Adam by default ``eps=1e-5`` and the fused implementation.
    """

    action_dist: ProjectedDistribution
    critic_optimizer: th.optim.Optimizer | None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        covariance: Literal["diag", "full"] = "diag",
        contextual_std: bool = False,
        init_std: float = 0.37,
        min_std: float = 1e-5,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        use_sde: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = False,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if use_sde:
            raise ValueError("Trust region layers project Gaussians in the action: use_sde is not available.")
        self._gaussian_kwargs: dict[str, Any] = {
            "covariance": covariance,
            "contextual_std": contextual_std,
            "init_std": init_std,
            "min_std": min_std,
        }
        self._check_action_space(action_space)
        if optimizer_kwargs is None and optimizer_class is th.optim.Adam:
            optimizer_kwargs = {"eps": 1e-5, "fused": True}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=net_arch,
            activation_fn=activation_fn,
            ortho_init=ortho_init,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            share_features_extractor=share_features_extractor,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _check_action_space(self, action_space: spaces.Space) -> None:
        if isinstance(action_space, spaces.Box):
            return
        if not isinstance(action_space, DISCRETE):
            raise ValueError(
                f"{type(self).__name__} takes actions of Box, Discrete, MultiDiscrete and MultiBinary spaces, not of "
                f"{action_space}."
            )
        defaults = inspect.signature(TRPLPolicy.__init__).parameters
        for name, value in self._gaussian_kwargs.items():
            if value != defaults[name].default:
                given = f"{name}={value!r}"
                raise ValueError(
                    f"{given} is for Gaussians, but actions of {action_space} are categorical: leave it out."
                )

    def gaussian(self, observations: Any) -> Gaussian:
        """Return the predicted Gaussian π_θ(·|s) at a batch of observations, of actions in a ``Box``."""
        return self.predicted(observations)

    def predicted(self, observations: Any) -> Any:
        """Return the predicted π_θ(·|s) at a batch of observations: a ``Gaussian``, or a ``Categorical``."""
        observations, masks = unmasked(observations)
        return self._masked_distribution(actor_latent(self, observations), masks).predicted

    def predicted_and_values(self, observations: Any) -> tuple[Any, th.Tensor]:
        """Return what ``predicted`` does and the values ``(batch, 1)``, with one pass through shared layers."""
        observations, masks = unmasked(observations)
        latent_pi, latent_vf = latents(self, observations)
        return self._masked_distribution(latent_pi, masks).predicted, self.value_net(latent_vf)

    def get_distribution(self, obs: Any) -> ProjectedDistribution:
        """Return the policy's distribution at a batch of observations."""
        return self._get_action_dist_from_latent(actor_latent(self, obs))

    def predict_values(self, obs: Any) -> th.Tensor:
        """Return the values at a batch of observations, ``(batch, 1)``."""
        return self.value_net(critic_latent(self, unmasked(obs)[0]))

    def set_scale(self, scale: th.Tensor) -> None:
        """Set the non-contextual standard deviation (or Cholesky factor), exactly."""
        self.scale_net.set_scale(scale)

    def actor_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the policy depends on, frozen ones among them."""

        def outputs(observation: Any) -> th.Tensor:
            latent = actor_latent(self, observation)
            return th.stack([head(latent).sum().float() for head in self.heads()]).sum()

        return parameters_behind(self, outputs, self.pi_features_extractor)

    def critic_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the value depends on, frozen ones among them."""
        return parameters_behind(self, lambda x: self.predict_values(x).sum(), self.vf_features_extractor)

    @classmethod
    def load(cls, path: str, device: th.device | str = "auto") -> Any:
        """Load what ``save`` wrote, as in SB3; also what an earlier version saved."""
        with old_modules():
            return super().load(path, device)

    @property
    def shares_parameters(self) -> bool:
        """Whether actor and critic have parameters in common, and so one optimiser and one loss."""
        return self.critic_optimizer is None

    def _build(self, lr_schedule: Schedule) -> None:
        self._build_mlp_extractor()
        latent_dim = self.mlp_extractor.latent_dim_pi
        if isinstance(self.action_space, spaces.Box):
            gaussian = ProjectedGaussianDistribution(get_action_dim(self.action_space), **self._gaussian_kwargs)
            self.action_dist, (self.action_net, self.scale_net) = gaussian, gaussian.proba_distribution_net(latent_dim)
        else:
            categorical = ProjectedCategoricalDistribution(self.action_space)
            self.action_dist, self.action_net = categorical, categorical.proba_distribution_net(latent_dim)
        self.value_net = nn.Linear(self.mlp_extractor.latent_dim_vf, 1)
        if self.ortho_init:
            self._initialise_orthogonally()
        self._build_optimizers(lr_schedule(1))

    def _initialise_orthogonally(self) -> None:
        gains = {
            self.mlp_extractor: np.sqrt(2),
            **dict.fromkeys(self.heads(), 0.01),
            self.value_net: 1.0,
        }
        gains[self.pi_features_extractor] = gains[self.vf_features_extractor] = np.sqrt(2)
        for module, gain in gains.items():
            module.apply(partial(self.init_weights, gain=gain))

    def _build_optimizers(self, learning_rate: float) -> None:
        actor, critic = self.actor_parameters(), self.critic_parameters()
        if any(p.requires_grad for p in set(actor) & set(critic)):
            self.optimizer, self.critic_optimizer = self.make_optimizer(list(self.parameters()), learning_rate), None
        else:
            self.optimizer = self.make_optimizer(actor, learning_rate)
            self.critic_optimizer = self.make_optimizer(critic, learning_rate)

    def make_optimizer(self, parameters: list[nn.Parameter], learning_rate: float) -> th.optim.Optimizer:
        """Return a new optimiser of the policy's class for some of its parameters."""
        kwargs: dict[str, Any] = {"lr": learning_rate, **self.optimizer_kwargs}
        return self.optimizer_class(parameters, **kwargs)

    def _masked_distribution(self, latent_pi: th.Tensor, masks: th.Tensor | None) -> Any:
        distribution: Any = self._get_action_dist_from_latent(latent_pi)
        return distribution if masks is None else distribution.masked(masks)

    def heads(self) -> list[nn.Module]:
        """The layers whose outputs are the distribution's parameters."""
        return [self.action_net, self.scale_net] if isinstance(self.action_space, spaces.Box) else [self.action_net]

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> ProjectedDistribution:
        distribution: Any = copy.copy(self.action_dist)
        return distribution.proba_distribution(*(head(latent_pi) for head in self.heads()))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        for unused in ("use_sde", "log_std_init", "squash_output", "full_std", "use_expln"):
            data.pop(unused, None)
        return data | self._gaussian_kwargs | {"share_features_extractor": self.share_features_extractor}


class TRPLCnnPolicy(TRPLPolicy):
    """``TRPLPolicy`` for image observations (NatureCNN)."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=features_extractor_class,
            **kwargs,
        )


class TRPLMultiInputPolicy(TRPLPolicy):
    """``TRPLPolicy`` for ``Dict`` observations (CombinedExtractor)."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=features_extractor_class,
            **kwargs,
        )


class SingleOptimizerPolicy(TRPLPolicy):
    """``TRPLPolicy`` with one optimiser for actor and critic, for algorithms that know of only one.

    With it SB3's PPO has covariances that depend on the state:
    ``PPO(SingleOptimizerPolicy, env, policy_kwargs={"contextual_std": True})``.
    """

    def _build_optimizers(self, learning_rate: float) -> None:
        self.optimizer, self.critic_optimizer = self.make_optimizer(list(self.parameters()), learning_rate), None


MlpPolicy = TRPLPolicy
CnnPolicy = TRPLCnnPolicy
MultiInputPolicy = TRPLMultiInputPolicy
