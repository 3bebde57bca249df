"""PAPI: policy gradients, then a projection of the policy onto a ball of expected KL (Akrour et al., ICML 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trl.algorithms.arguments import check_at_least, check_positive
from sb3_trl.algorithms.losses import clipped_surrogate_loss, normalize
from sb3_trl.algorithms.projecting import ProjectingAlgorithm
from sb3_trl.policies.actor_critic import TRPLPolicy
from sb3_trl.policies.distributions import ProjectedGaussianDistribution
from sb3_trl.policies.forward import ForwardPass
from sb3_trl.projections import Gaussian
from sb3_trl.projections.expected_kl import covariance_share, expected_kl, interpolate_covariance, mean_share
from sb3_trl.projections.gaussian import kl
from sb3_trl.rollouts.rollout import Rollout
from sb3_trl.steps.gradient_step import Loss
from sb3_trl.steps.running_means import RunningMeans

__all__ = ["PAPI"]

#: The projection aims at this share of the bound, so that rounding the last layer leaves the policy inside.
_TARGET = 1 - 1e-4
#: Shares of the last layer's step to try: where rounding spoils the first, a little less, at the end nothing.
_FRACTIONS = (1.0, 0.99, 0.9, 0.0)


class PAPI(ProjectingAlgorithm):
    """Projected Approximate Policy Iteration (Akrour et al., 2019, https://proceedings.mlr.press/v97/akrour19a.html).

    PPO's epochs on the clipped surrogate, without a trust region; then the policy is projected, in closed form, onto
    the ball E_s[KL(π ‖ π_old)] ≤ ε. First the covariance moves towards the old one. Then the hidden layers go back,
    epoch by epoch, to the newest ones that obey the bound together with the *old* last layer; between this
    intermediate policy and the one with the *new* last layer, all means move on straight lines, and the last point
    inside the ball is taken. After every update the bound holds for the mean over the states of the batch. It is the
    baseline of the TRPL paper; the defaults are that paper's for MuJoCo.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of ``TRPLPolicy``.
    :param env: The environment, or its id. Its actions must be a ``Box``.
    :param learning_rate: The policy's, a number, ``"lin_<x>"`` or a function of the remaining progress.
    :param critic_learning_rate: The value function's, likewise.
    :param n_steps: Steps per environment and update.
    :param batch_size: Minibatch size.
    :param n_epochs: Passes over the rollout to improve the policy.
    :param n_critic_epochs: Passes over the rollout to fit the value function, before those for the policy.
    :param gamma: Discount factor.
    :param gae_lambda: λ of generalised advantage estimation.
    :param kl_bound: ε, nats: how far the policy may move in one update, on average over the states of the batch.
    :param clip_range: Clipping of the probability ratio as in PPO, a number, ``"lin_<x>"`` or a function of the
        remaining progress.
    :param learning_rate_decay: Factor on the policy's learning rate, for good, whenever no hidden layers but the old
        ones obeyed the bound; 1 leaves it as it is.
    :param normalize_advantage: Normalise advantages in each minibatch.
    :param ent_coef: Entropy bonus.
    :param max_grad_norm: Gradient clipping, none by default.
    :param compile: Compile the training step, as in ``TRPL``.
    :param rollout_buffer_class: As in SB3.
    :param rollout_buffer_kwargs: As in SB3.
    :param stats_window_size: As in SB3.
    :param tensorboard_log: As in SB3.
    :param policy_kwargs: Arguments of ``TRPLPolicy``; not ``contextual_std``.
    :param verbose: As in SB3.
    :param seed: As in SB3.
    :param device: As in SB3.
    :param _init_setup_model: As in SB3.
    """

    name: ClassVar[str] = "PAPI"

    def __init__(
        self,
        policy: str | type[TRPLPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 3e-4,
        critic_learning_rate: float | str | Schedule = 2.5e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        n_critic_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        kl_bound: float = 0.015,
        clip_range: float | str | Schedule = 0.2,
        learning_rate_decay: float = 0.8,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        max_grad_norm: float | None = None,
        compile: bool | Literal["auto"] = "auto",
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,  # type: ignore[arg-type]
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=1.0,  # unused: the critic has a loss of its own
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]
            use_sde=False,
            sde_sample_freq=-1,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.critic_learning_rate = critic_learning_rate
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.n_critic_epochs = n_critic_epochs
        self.kl_bound = kl_bound
        self.clip_range = clip_range
        self.learning_rate_decay = learning_rate_decay
        self.normalize_advantage = normalize_advantage
        self.compile = compile
        if _init_setup_model:
            self._setup_model()

    # --- the algorithm ---

    def train(self) -> None:
        """Improve the policy with the rollout just collected, then project it onto the trust region."""
        self.policy.set_training_mode(True)
        self._set_learning_rates()
        rollout = self._rollout()
        old, old_layer = self._predictions(rollout), _copies(self._last_layer())

        stats = RunningMeans()
        self._fit_critic(rollout, stats)
        history = self._improve_policy(rollout, stats)
        self._check_finite_parameters()

        projection = {"cov_share": 1.0, "mean_share": 1.0, "backtracks": 0}
        if not self._is_inside(rollout, old):
            projection["cov_share"] = self._project_covariance(rollout, old)
            projection["backtracks"] = self._backtrack(rollout, old, old_layer, history)
            projection["mean_share"] = self._project_last_layer(rollout, old, old_layer)
        if projection["backtracks"] == self.n_epochs:
            self._learning_rate_scale *= self.learning_rate_decay

        self._n_updates += self.n_epochs
        self._log_update(rollout, old, projection, stats)

    def _improve_policy(self, rollout: Rollout, stats: RunningMeans) -> list[list[th.Tensor]]:
        """Maximise the clipped surrogate; return the hidden layers before the first epoch and after each."""
        actor, optimizer = ForwardPass(self.policy, "predicted"), self.policy.optimizer
        data = (rollout, self._scalar(self._now("clip_range")), self._weight(self.ent_coef))
        history = [_copies(self._hidden_layers())]
        for _ in range(self.n_epochs):
            self._take_steps("actor", self._policy_loss, actor, optimizer, data, 1, stats)
            history.append(_copies(self._hidden_layers()))
        return history

    def _policy_loss(
        self, forward: Any, batch: Rollout, clip_range: th.Tensor, entropy_weight: th.Tensor | None
    ) -> Loss:
        """Return PPO's clipped surrogate, with the entropy bonus."""
        new = forward(batch.observations)
        advantages = normalize(batch.advantages) if self.normalize_advantage else batch.advantages
        log_prob = new.log_prob(batch.actions)
        loss, clip_fraction = clipped_surrogate_loss(log_prob, batch.old_log_prob, advantages, clip_range)
        scalars = {"policy_gradient_loss": loss, "clip_fraction": clip_fraction}
        if entropy_weight is not None:
            loss = loss - entropy_weight * new.entropy().mean()
        return loss, scalars

    def _project_covariance(self, rollout: Rollout, old: Gaussian) -> float:
        """Interpolate the covariance with the old one, and return the new one's share η."""
        new = self._predictions(rollout)
        mean_part, cov_part = expected_kl(new, old)
        if not bool((mean_part + cov_part).isfinite()):
            raise FloatingPointError(
                f"The policy's divergence from the old one is not finite after {self.num_timesteps} timesteps. Lower "
                "the learning rate, or clip gradients (max_grad_norm=0.5)."
            )
        share = covariance_share(mean_part, cov_part, _TARGET * self.kl_bound)
        self._set_scale(interpolate_covariance(new, old, share))
        return share.item()

    def _backtrack(
        self, rollout: Rollout, old: Gaussian, old_layer: list[th.Tensor], history: list[list[th.Tensor]]
    ) -> int:
        """Go back to the newest hidden layers that obey the bound together with the old last layer.

        Those before the first epoch do: then nothing but the covariance has moved. Leaves the last layer as it is,
        and returns the number of epochs undone.
        """
        layer = _copies(self._last_layer())
        _assign(self._last_layer(), old_layer)
        undone = 0
        for undone, hidden in enumerate(reversed(history)):  # noqa: B007
            _assign(self._hidden_layers(), hidden)
            intermediate = self._predictions(rollout)
            if bool(expected_kl(intermediate, old)[0] <= self._bound_of_means(intermediate, old)):
                break
        _assign(self._last_layer(), layer)
        return undone

    def _project_last_layer(self, rollout: Rollout, old: Gaussian, old_layer: list[th.Tensor]) -> float:
        """Interpolate the last layer with the old one, and return the new one's share t."""
        layer, new = _copies(self._last_layer()), self._predictions(rollout)
        _assign(self._last_layer(), old_layer)
        intermediate = self._predictions(rollout)
        largest = mean_share(intermediate, new, old, self._bound_of_means(intermediate, old)).item()
        for share in (fraction * largest for fraction in _FRACTIONS):
            _assign(self._last_layer(), [th.lerp(a, b, share) for a, b in zip(old_layer, layer, strict=True)])
            if self._is_inside(rollout, old):
                break
        return share

    def _bound_of_means(self, policy: Gaussian, old: Gaussian) -> th.Tensor:
        """Return what the policy's covariance leaves of the bound for its means."""
        return (_TARGET * self.kl_bound - expected_kl(policy, old)[1]).clamp(min=0)

    def _is_inside(self, rollout: Rollout, old: Gaussian) -> bool:
        return bool(sum(expected_kl(self._predictions(rollout), old)) <= self.kl_bound)

    # --- plumbing ---

    def _last_layer(self) -> list[th.Tensor]:
        """Return the parameters of the layer, linear in the hidden layers' output, that gives the means."""
        return list(self.policy.action_net.parameters())

    def _hidden_layers(self) -> list[th.Tensor]:
        """Return everything else that the means depend on."""
        others = {id(p) for p in [*self._last_layer(), *self.policy.scale_net.parameters()]}
        return [tensor for tensor in self._policy_state() if id(tensor) not in others]

    def _policy_learning_rate(self) -> float:
        return self._learning_rate_scale * super()._policy_learning_rate()

    def _log_update(self, rollout: Rollout, old: Gaussian, projection: dict[str, float], stats: RunningMeans) -> None:
        self._log("train", stats.read())
        self._log_explained_variance(rollout)
        acting = self._predictions(rollout).double()
        mean_part, cov_part = kl(acting, old.double())
        divergence = mean_part + cov_part
        values = {
            "kl_mean": divergence.mean(),
            "kl_max": divergence.max(),
            "entropy": acting.entropy().mean(),
            "violation_fraction": (divergence > self.kl_bound).double().mean(),
        }
        self._log("trust_region", {key: value.item() for key, value in values.items()})
        self._log("papi", {**projection, "kl_bound": self.kl_bound, "learning_rate_scale": self._learning_rate_scale})
        std = acting.covariance.diagonal(dim1=-2, dim2=-1).sqrt().mean().item()
        self._log("train", {"std": std})
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _setup_model(self) -> None:
        self._check_arguments()
        self._learning_rate_scale = getattr(self, "_learning_rate_scale", 1.0)
        super()._setup_model()
        self._schedule("clip_range")  # which says what is wrong with it
        if self._gaussian.contextual_std:
            raise ValueError(
                "PAPI projects one covariance for all states: contextual_std=True needs sb3_trl.TRPL, which projects "
                "state by state."
            )
        if self.policy.shares_parameters:
            raise ValueError(
                "PAPI moves the policy's hidden layers back, which would take those of the value function with them: "
                "set share_features_extractor=False in policy_kwargs."
            )

    def _check_arguments(self) -> None:
        if not isinstance(self.action_space, spaces.Box):
            raise ValueError(
                f"PAPI projects Gaussian policies and needs a Box action space, not {self.action_space}. For this one "
                "use sb3_trl.TRPL or sb3_trl.FixPO."
            )
        check_at_least(self, {"n_critic_epochs": 0})
        check_positive(self, "kl_bound")
        if not 0 < self.learning_rate_decay <= 1:
            raise ValueError(f"learning_rate_decay={self.learning_rate_decay} must be in (0, 1]; 1 is no decay.")

    @property
    def _gaussian(self) -> ProjectedGaussianDistribution:
        assert isinstance(self.policy.action_dist, ProjectedGaussianDistribution)
        return self.policy.action_dist

    def _can_compile(self) -> bool:
        return self._gaussian.covariance == "diag"


def _copies(tensors: Sequence[th.Tensor]) -> list[th.Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@th.no_grad()
def _assign(tensors: Sequence[th.Tensor], values: Sequence[th.Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
