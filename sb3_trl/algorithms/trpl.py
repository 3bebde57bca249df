"""TRPL: policy gradients through a differentiable trust region layer (Otto et al., ICLR 2021)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trl.algorithms.arguments import check_trpl
from sb3_trl.algorithms.enforcement import roll_back
from sb3_trl.algorithms.hard import step_inside
from sb3_trl.algorithms.losses import Weights, normalize, surrogate_loss, trust_region_loss, value_loss
from sb3_trl.algorithms.masking import ActionMasking
from sb3_trl.algorithms.projecting import ProjectingAlgorithm
from sb3_trl.algorithms.tasks import ManyTasks
from sb3_trl.algorithms.trust_region import TrustRegion, reachable_entropy
from sb3_trl.policies.actor_critic import TRPLPolicy
from sb3_trl.policies.categorical import DISCRETE
from sb3_trl.policies.forward import ForwardPass
from sb3_trl.policies.masks import unmasked
from sb3_trl.policies.sequences import steps_of
from sb3_trl.projections import (
    EntropySchedule,
    FrobeniusProjection,
    Gaussian,
    KLProjection,
    Projection,
    TrustRegionLayer,
    WassersteinProjection,
)
from sb3_trl.projections.named import make_projection
from sb3_trl.projections.projection import invalid_scale
from sb3_trl.rollouts.rollout import Rollout
from sb3_trl.schedules import BoundSchedule, StateBound, as_bound, bound_at
from sb3_trl.steps.gradient_step import Loss
from sb3_trl.steps.running_means import RunningMeans

__all__ = ["TRPL"]


class TRPL(ManyTasks, ActionMasking, ProjectingAlgorithm):
    """Trust Region Projection Layers (Algorithm 2 of Otto et al., 2021, https://openreview.net/forum?id=qYZD-AO1Vn).

    The policy that collects rollouts is the network's Gaussian π_θ. The loss looks at its projection π̃ onto a
    trust region around the policy that collected the data, and a penalty keeps π_θ near π̃:
    −E[π̃(a|s)/π_old(a|s)·Â] + α E[d(π_θ, π̃)] (eq. 12). By default, bounds and penalty are the paper's for
    MuJoCo; learning rates, minibatches, epochs and the initial standard deviation are those that served most tasks
    best (``trpl.yml``).

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a subclass of ``TRPLPolicy``.
    :param env: The environment, or its id; its actions may be of any space that SB3's PPO takes.
    :param learning_rate: The policy's, a number, ``"lin_<x>"`` or a function of the remaining progress.
    :param critic_learning_rate: The value function's, likewise.
    :param n_steps: Steps per environment and update.
    :param batch_size: Minibatch size.
    :param n_epochs: Passes over the rollout to improve the policy.
    :param n_critic_epochs: Passes over the rollout to fit the value function, before those for the policy.
        Where actor and critic share parameters there is one loss and ``n_epochs`` counts.
    :param gamma: Discount factor.
    :param gae_lambda: λ of generalised advantage estimation.
    :param projection: ``"kl"``, ``"w2"``, ``"frobenius"``, ``"joint_kl"``, a ``Projection``, or ``None``.
    :param mean_bound: ε_μ, a number, ``"lin_<x>"``, a function of the remaining progress, or a ``StateBound``
        of the observations. By default 0.03, or that of the ``Projection`` given.
    :param cov_bound: ε_Σ, likewise; by default 1e-3. Where the standard deviation does not depend on the state
        but the bound does, the smallest bound of the batch counts.
    :param kl_bound: ε of discrete actions, likewise; by default 0.01. They have neither of the other two.
    :param trust_region_coef: α, the weight of the penalty.
    :param entropy_schedule: ``"exp"`` or ``"linear"``: how the lower bound of the entropy falls from the first
        batch's entropy to the target; ``None`` for no entropy control.
    :param target_entropy: κ, nats per action dimension.
    :param temperature: τ of the exponential schedule.
    :param entropy_equality: Make the entropy equal to its bound.
    :param entropy_first: Control the entropy before the trust region instead of after it.
    :param n_regression_epochs: Passes that fit the policy to its projection after the policy epochs (section
        4.4), the alternative to the penalty.
    :param hard: Make the policy that acts obey the bounds at every state of the batch: further steps on the
        penalty alone until it does, then, past ``max_hard_steps``, a halving search back to the old policy.
    :param max_hard_steps: Cap of those steps in one update.
    :param normalize_advantage: Normalise advantages in each minibatch; ``"task"``: among those of each task, once.
    :param tasks: How the tasks of a policy for many are told apart, as in ``FixPO``: each has its own curves in the
        log then. Bounds of each task are a ``StateBound``.
    :param ent_coef: Entropy bonus.
    :param vf_coef: Weight of the value loss where actor and critic share parameters.
    :param max_grad_norm: Gradient clipping, none by default.
    :param compile: Compile the training step into one function. ``"auto"`` does where the steps planned repay
        the seconds it takes; what cannot be compiled trains without.
    :param rollout_buffer_class: As in SB3.
    :param rollout_buffer_kwargs: As in SB3.
    :param stats_window_size: As in SB3.
    :param tensorboard_log: As in SB3.
    :param policy_kwargs: Arguments of ``TRPLPolicy``: ``covariance``, ``contextual_std``, ``init_std``, ….
    :param verbose: As in SB3.
    :param seed: As in SB3.
    :param device: As in SB3.
    :param _init_setup_model: As in SB3.
    """

    name: ClassVar[str] = "TRPL"
    trust_region_layer: TrustRegionLayer

    def __init__(
        self,
        policy: str | type[TRPLPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 1e-4,
        critic_learning_rate: float | str | Schedule = 1e-3,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        n_critic_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        projection: str | Projection | None = "kl",
        mean_bound: float | str | Schedule | StateBound | None = None,
        cov_bound: float | str | Schedule | StateBound | None = None,
        kl_bound: float | str | Schedule | StateBound | None = None,
        trust_region_coef: float = 8.0,
        entropy_schedule: Literal["exp", "linear"] | None = None,
        target_entropy: float = 0.0,
        temperature: float = 0.5,
        entropy_equality: bool = False,
        entropy_first: bool = False,
        n_regression_epochs: int = 0,
        hard: bool = False,
        max_hard_steps: int = 200,
        normalize_advantage: bool | Literal["task"] = True,
        tasks: str | int | tuple[int, int] | None = None,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
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
            vf_coef=vf_coef,
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
            supported_action_spaces=(spaces.Box, *DISCRETE),
        )
        self.critic_learning_rate = critic_learning_rate
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.n_critic_epochs = n_critic_epochs
        self.projection = projection
        self.mean_bound = mean_bound
        self.cov_bound = cov_bound
        self.kl_bound = kl_bound
        self.trust_region_coef = trust_region_coef
        self.entropy_schedule = entropy_schedule
        self.target_entropy = target_entropy
        self.temperature = temperature
        self.entropy_equality = entropy_equality
        self.entropy_first = entropy_first
        self.n_regression_epochs = n_regression_epochs
        self.hard = hard
        self.max_hard_steps = max_hard_steps
        self.normalize_advantage = normalize_advantage
        self.tasks = tasks
        self.compile = compile
        if _init_setup_model:
            self._setup_model()

    # --- Algorithm 2 ---

    def train(self) -> None:
        """Update value function and policy with the rollout just collected (lines 4 to 9 of Algorithm 2)."""
        self.policy.set_training_mode(True)
        self._set_learning_rates()
        rollout = self._rollout()
        region = self._trust_region(rollout)
        start = [tensor.detach().clone() for tensor in self._policy_state()]

        stats = RunningMeans()
        self._fit_critic(rollout, stats)
        self._improve_policy(rollout, region, stats)
        prediction = self._predictions(rollout)
        self._adopt_projected_scale(prediction, region)
        self._regress_onto_projection(rollout, region, stats)
        if self.hard:
            self._enforce(rollout, region, start)

        self._n_updates += self.n_epochs
        self._check_finite_parameters()
        self._log_update(rollout, region, prediction, stats)

    def _trust_region(self, rollout: Rollout) -> TrustRegion:
        """Return the trust region around the policy that collected the rollout, with the bounds of now."""
        old = self._predictions(rollout)
        progress, observations = self._current_progress_remaining, steps_of(unmasked(rollout.observations)[0])
        bounds = [
            th.as_tensor(bound_at(bound, progress, observations), dtype=th.float64, device=self.device)
            for bound in self._bounds()
        ]
        if isinstance(old, Gaussian) and not old.is_contextual:
            bounds[-1] = bounds[-1].min()
        beta = self.trust_region_layer.entropy_bound(old, 1 - progress)
        entropy_bound = None if beta is None else reachable_entropy(beta, old)
        return TrustRegion(self.trust_region_layer, old, tuple(bounds), entropy_bound)

    def _improve_policy(self, rollout: Rollout, region: TrustRegion, stats: RunningMeans) -> None:
        """Maximise the surrogate of the projected policy (line 8)."""
        method = "predicted_and_values" if self.policy.shares_parameters else "predicted"
        actor, optimizer = ForwardPass(self.policy, method), self.policy.optimizer
        data = (rollout, region, self._weights())
        self._take_steps("actor", self._policy_loss, actor, optimizer, data, self.n_epochs, stats)

    def _weights(self) -> Weights:
        """Return the weights of the loss's terms, as they are now."""
        value = self._scalar(self.vf_coef) if self.policy.shares_parameters else None
        return Weights(value, self._weight(self.ent_coef), self._scalar(self.trust_region_coef))

    def _policy_loss(self, forward: Any, batch: Rollout, region: TrustRegion, weights: Weights) -> Loss:
        """Return eq. 12, with the entropy bonus, and the value loss where parameters are shared."""
        new = forward(batch.observations)
        if self.policy.shares_parameters:
            new, values = new
        projected = region.project(new)
        advantages = normalize(batch.advantages) if self._normalizes_minibatches else batch.advantages
        surrogate = surrogate_loss(projected.log_prob(batch.actions), batch.old_log_prob, advantages)
        penalty = trust_region_loss(new, projected, region.projection)
        loss = th.addcmul(surrogate, weights.trust_region, penalty)
        scalars = {"policy_gradient_loss": surrogate, "trust_region_loss": penalty}
        if weights.entropy is not None:
            loss = loss - weights.entropy * projected.entropy().mean()
        if self.policy.shares_parameters:
            scalars["value_loss"] = value_loss(values.flatten(), batch.returns)
            loss = loss + weights.value * scalars["value_loss"]
        if isinstance(new, Gaussian) and not new.is_diagonal:
            scalars["projection_fallbacks"] = invalid_scale(new).sum()
        return loss, scalars

    def _adopt_projected_scale(self, prediction: Any, region: TrustRegion) -> None:
        """Set a non-contextual standard deviation to its projected value, exactly."""
        if not isinstance(prediction, Gaussian) or prediction.is_contextual:
            return
        projected = region.project(prediction)
        scale = projected.scale
        if projected.is_contextual:  # the joint projection: the scale of the mean covariance stands for all
            covariance = projected.covariance.double().mean(0)
            diagonal = prediction.is_diagonal
            scale = covariance.diagonal().sqrt() if diagonal else th.linalg.cholesky(covariance)
        self._set_scale(scale)

    def _regress_onto_projection(self, rollout: Rollout, region: TrustRegion, stats: RunningMeans) -> None:
        """Fit the policy to its own projection, frozen for the whole batch (section 4.4)."""
        if self.n_regression_epochs == 0 or region.projection is None:
            return
        data = (rollout.observations, region.project(self._predictions(rollout)))
        actor, optimizer = ForwardPass(self.policy, "predicted"), self.policy.optimizer
        self._take_steps("regression", self._regression_loss, actor, optimizer, data, self.n_regression_epochs, stats)

    def _regression_loss(self, forward: Any, observations: Any, target: Any) -> Loss:
        """Return the distance to the frozen projection."""
        loss = trust_region_loss(forward(observations), target, self.trust_region_layer.projection)
        return loss, {"regression_loss": loss}

    def _enforce(self, rollout: Rollout, region: TrustRegion, start: list[th.Tensor]) -> None:
        """Leave the policy that acts inside the bounds at every state of the batch, whatever it takes."""
        rate, limits = self._policy_learning_rate(), (self.max_hard_steps, self.max_grad_norm)
        steps = step_inside(self.policy, rate, self._states((rollout.observations, region)), *limits)
        self._rollbacks += roll_back(
            self.policy.optimizer,
            self._policy_state(),
            start,
            lambda: bool(region.is_inside(self._predictions(rollout)).all()),
        )
        self._log("trust_region", {"hard_steps": steps, "rollbacks": self._rollbacks})

    # --- plumbing ---

    def _log_update(self, rollout: Rollout, region: TrustRegion, prediction: Any, stats: RunningMeans) -> None:
        means = stats.read()
        if "projection_fallbacks" in means:
            means["projection_fallbacks"] *= self.n_epochs * self._n_minibatches(rollout)
        self._log("train", means)
        self._log_explained_variance(rollout)
        acting = self._predictions(rollout)
        projected_fraction = 1 - region.is_inside(prediction).double().mean().item()
        self._log_measured("trust_region", TrustRegion.measure, (region, acting), rollout.tasks)
        self._log("trust_region", {"projected_fraction": projected_fraction})
        if isinstance(acting, Gaussian):
            self._log("train", {"std": acting.covariance.diagonal(dim1=-2, dim2=-1).sqrt().mean().item()})
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _setup_model(self) -> None:
        projection = make_projection(self.projection)
        check_trpl(self, projection)
        self._rollbacks = getattr(self, "_rollbacks", 0)
        schedule = None
        if self.entropy_schedule is not None:
            schedule = EntropySchedule(self.entropy_schedule, self.target_entropy, self.temperature)
        super()._setup_model()
        layer = TrustRegionLayer(projection, schedule, self.entropy_equality, self.entropy_first)
        self.trust_region_layer = layer.to(self.device)
        self._bounds()  # which says what is wrong with them

    def _bounds(self) -> list[BoundSchedule]:
        """Return the bounds of a policy of this kind: the arguments, or the projection's own."""
        own = KLProjection() if self.trust_region_layer.projection is None else self.trust_region_layer.projection
        return [self._schedule(name, getattr(own, name), as_bound) for name in self.policy.action_dist.bound_names]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, tensors = super()._get_torch_save_params()
        return [*names, "trust_region_layer"], tensors

    def _can_compile(self) -> bool:
        # Full covariances and the joint projection rest on eigensolvers, which compilation does not speed up.
        closed = (KLProjection, WassersteinProjection, FrobeniusProjection, type(None))
        diagonal = getattr(self.policy.action_dist, "covariance", "diag") == "diag"
        return diagonal and type(self.trust_region_layer.projection) in closed
