"""The Gaussian action distribution of ``TRPLPolicy``, as Stable-Baselines3 asks for distributions."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch as th
from stable_baselines3.common.distributions import Distribution
from torch import nn
from torch.distributions import Distribution as TorchDistribution
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.nn import functional as F

from sb3_trl.projections import Gaussian, TrustRegionLayer

__all__ = ["ProjectedGaussianDistribution", "ScaleHead"]


class ScaleHead(nn.Module):
    """The scale of a Gaussian policy: σ = softplus(x + softplus⁻¹(init_std − min_std)) + min_std.

    x is the output of a linear layer (contextual) or a parameter (non-contextual); both start at σ ≈ init_std.
    For a full covariance x also holds the entries below the diagonal of L, as they are.

    A non-contextual x is stored in float64, so that ``set_scale`` followed by ``forward`` gives back any
    float32 scale exactly.

    :param latent_dim: Size of the actor's last hidden layer.
    :param action_dim: d.
    :param full: Output Cholesky factors ``(batch, d, d)`` instead of standard deviations ``(batch, d)``.
    :param contextual: Whether the scale depends on the state; if not, it has no batch dimension.
    :param init_std: Initial standard deviation.
    :param min_std: Smallest standard deviation (diagonal entry of L).
    """

    def __init__(
        self, latent_dim: int, action_dim: int, full: bool, contextual: bool, init_std: float, min_std: float
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.full = full
        self.min_std = min_std
        excess = init_std - min_std
        self.shift = excess + math.log(-math.expm1(-excess))  # softplus⁻¹
        size = action_dim * (action_dim + 1) // 2 if full else action_dim
        self.linear = nn.Linear(latent_dim, size) if contextual else None
        self.raw = None if contextual else nn.Parameter(th.zeros(size, dtype=th.float64))

    def forward(self, latent: th.Tensor) -> th.Tensor:
        """Return the scale at a batch of latent states, in their dtype."""
        raw = self.raw if self.linear is None else self.linear(latent)
        assert raw is not None
        return self.scale(raw).to(latent.dtype)

    def scale(self, raw: th.Tensor) -> th.Tensor:
        """Return σ, or L, of x.

        :param raw: x, ``(..., d)``, or ``(..., d (d + 1) / 2)`` for a full covariance.
        """
        diagonal = raw[..., : self.action_dim] if self.full else raw
        std = F.softplus(diagonal + self.shift) + self.min_std
        if not self.full:
            return std
        tril = th.diag_embed(std)
        rows, columns = th.tril_indices(self.action_dim, self.action_dim, -1, device=raw.device)
        tril[..., rows, columns] = raw[..., self.action_dim :]
        return tril

    @th.no_grad()
    def set_scale(self, scale: th.Tensor) -> None:
        """Make ``forward`` return ``scale`` from now on; only where it does not depend on the state.

        :param scale: ``(d,)``, or ``(d, d)`` lower-triangular.
        :raises ValueError: if the scale is contextual.
        """
        if self.raw is None:
            raise ValueError("A contextual scale is the output of a network: it cannot be set.")
        scale = scale.double()
        std = scale.diagonal() if self.full else scale
        excess = (std - self.min_std).clamp(min=1e-300)
        # softplus⁻¹(y) = y + log(1 − e^{−y})
        self.raw[: self.action_dim] = excess + th.log(-th.expm1(-excess)) - self.shift
        if self.full:
            rows, columns = th.tril_indices(self.action_dim, self.action_dim, -1, device=scale.device)
            self.raw[self.action_dim :] = scale[rows, columns]


class ProjectedGaussianDistribution(Distribution):
    """A Gaussian, diagonal or full, that a ``TrustRegionLayer`` can project.

    The policy acts with it as it is; only the loss looks at its projection (``projected``).

    :param action_dim: Number of action dimensions.
    :param covariance: ``"diag"`` or ``"full"``.
    :param contextual_std: Whether the covariance depends on the state.
    :param init_std: Standard deviation of the untrained policy.
    :param min_std: Smallest standard deviation.
    :raises ValueError: for another covariance, or unless 0 < min_std < init_std.
    """

    gaussian: Gaussian
    bound_names = Gaussian.bound_names

    def __init__(
        self,
        action_dim: int,
        covariance: Literal["diag", "full"] = "diag",
        contextual_std: bool = False,
        init_std: float = 0.37,
        min_std: float = 1e-5,
    ) -> None:
        super().__init__()
        if covariance not in ("diag", "full"):
            raise ValueError(f"covariance={covariance!r} is unknown: choose 'diag' or 'full'.")
        if not 0 < min_std < init_std:
            raise ValueError(f"init_std={init_std} and min_std={min_std}: 0 < min_std < init_std is needed.")
        self.action_dim = action_dim
        self.covariance = covariance
        self.contextual_std = contextual_std
        self.init_std = init_std
        self.min_std = min_std

    @property
    def predicted(self) -> Gaussian:
        """The distribution as projections know it."""
        return self.gaussian

    @property
    def distribution(self) -> TorchDistribution:  # type: ignore[override]
        """The same Gaussian as a ``torch.distributions`` object, one event per action."""
        if self.gaussian.std is not None:
            std = self.gaussian.std.expand_as(self.gaussian.mean)
            return Independent(Normal(self.gaussian.mean, std, validate_args=False), 1, validate_args=False)
        return MultivariateNormal(self.gaussian.mean, scale_tril=self.gaussian.scale, validate_args=False)

    def proba_distribution_net(self, latent_dim: int) -> tuple[nn.Linear, ScaleHead]:  # type: ignore[override]
        """Create the layers for the mean and for the scale.

        :param latent_dim: Size of the actor's last hidden layer.
        """
        scale = ScaleHead(
            latent_dim,
            self.action_dim,
            self.covariance == "full",
            self.contextual_std,
            self.init_std,
            self.min_std,
        )
        return nn.Linear(latent_dim, self.action_dim), scale

    def proba_distribution(self, mean_actions: th.Tensor, scale: th.Tensor) -> ProjectedGaussianDistribution:
        """Set the parameters of the distribution.

        :param mean_actions: ``(batch, d)``.
        :param scale: Standard deviations or Cholesky factors, as ``covariance`` says.
        """
        return self.with_gaussian(self.from_outputs(mean_actions, scale))

    def from_outputs(self, mean_actions: th.Tensor, scale: th.Tensor) -> Gaussian:
        """Return the Gaussian with these parameters, as in ``proba_distribution``."""
        full = self.covariance == "full"
        return Gaussian(mean_actions, scale_tril=scale) if full else Gaussian(mean_actions, std=scale)

    def with_gaussian(self, gaussian: Gaussian) -> ProjectedGaussianDistribution:
        """Hold ``gaussian`` from now on, and return the distribution itself."""
        self.gaussian = gaussian
        return self

    def projected(
        self, layer: TrustRegionLayer, old: Gaussian | ProjectedGaussianDistribution, **bounds: Any
    ) -> ProjectedGaussianDistribution:
        """Return the distribution under π̃, the projection of this one onto the trust region around ``old``.

        :param layer: The trust region.
        :param old: The policy that collected the data.
        :param bounds: ``mean_bound``, ``cov_bound``, ``entropy_bound``, where they differ from the layer's own.
        """
        old = old.gaussian if isinstance(old, ProjectedGaussianDistribution) else old
        twin = ProjectedGaussianDistribution(
            self.action_dim, self.covariance, self.contextual_std, self.init_std, self.min_std
        )
        return twin.with_gaussian(layer(self.gaussian, old, **bounds))

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """Return the log-density of the actions; shape ``(batch,)``."""
        return self.gaussian.log_prob(actions)

    def entropy(self) -> th.Tensor:
        """Return the entropy in nats; shape ``(batch,)``."""
        return self.gaussian.entropy()

    def sample(self) -> th.Tensor:
        """Draw actions, differentiable in the parameters; shape ``(batch, d)``."""
        return self.gaussian.sample()

    def mode(self) -> th.Tensor:
        """Return the means; shape ``(batch, d)``."""
        return self.gaussian.mean

    def actions_from_params(self, mean_actions: th.Tensor, scale: th.Tensor, deterministic: bool = False) -> th.Tensor:
        """Return actions drawn with the given parameters, the means if ``deterministic``."""
        return self.proba_distribution(mean_actions, scale).get_actions(deterministic=deterministic)

    def log_prob_from_params(self, mean_actions: th.Tensor, scale: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return actions drawn with the given parameters, and their log-densities."""
        actions = self.actions_from_params(mean_actions, scale)
        return actions, self.log_prob(actions)
