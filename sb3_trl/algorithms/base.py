"""What the package's algorithms share: the checks, the rollout as tensors, epochs, the trust-region log."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import explained_variance, update_learning_rate
from torch import nn

from sb3_trl.algorithms.arguments import check_at_least, check_choices, check_policy_kwargs
from sb3_trl.algorithms.collecting import LeanRollouts, first
from sb3_trl.monitoring.dashboard import DashboardCallback
from sb3_trl.rollouts.rollout import Rollout, rollout_from_buffer
from sb3_trl.schedules import as_schedule
from sb3_trl.steps.evaluation import CompiledEvaluation
from sb3_trl.steps.flat_adam import is_plain_adam
from sb3_trl.steps.gradient_step import CompiledStep, EagerStep, StepLoss
from sb3_trl.steps.running_means import RunningMeans
from sb3_trl.table import Shared, Table, table

__all__ = ["LeanRollouts", "TrustRegionAlgorithm"]

#: Attributes that are left out of files and copies.
_MADE_AGAIN = ("_compiled_steps", "_evaluations", "_schedules")
#: Gradient steps that repay the seconds of compilation.
_STEPS_WORTH_COMPILING = 60_000


class TrustRegionAlgorithm(LeanRollouts):
    """Base class of TRPL, FixPO and their relatives."""

    #: What the keys that it logs begin with; decides the charts of the dashboard.
    log_prefixes: ClassVar[tuple[str, ...]] = ("trust_region/",)

    batch_size: int
    n_epochs: int
    compile: bool | Literal["auto"]

    #: Asked to take the gradient steps while this update runs beside others' (``SeedBatch``).
    _lockstep: Any = None

    def _setup_model(self) -> None:
        check_choices(self, {"compile": (True, False, "auto")})
        self._compiled_steps: dict[str, CompiledStep] = {}
        self._evaluations: dict[str, CompiledEvaluation] = {}
        self._schedules: dict[str, tuple[Any, Any]] = {}
        self._check_rollout_size()
        self._check_policy_class()
        check_policy_kwargs(self.policy_class, self.policy_kwargs)
        super()._setup_model()

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        return super()._init_callback(first(DashboardCallback(self.log_prefixes), callback), progress_bar)

    def _check_policy_class(self) -> None:
        if issubclass(self.policy_class, RecurrentActorCriticPolicy):
            raise ValueError(
                f"{self.policy_class.__name__} has a memory, which {type(self).__name__} would not look after: use "
                "RecurrentFixPO, RecurrentTRPL or LeanRecurrentPPO."
            )

    def _check_rollout_size(self) -> None:
        check_at_least(self, {"n_steps": 1, "batch_size": 1, "n_epochs": 1})
        if self._normalizes_minibatches and self.batch_size == 1:
            raise ValueError(
                "batch_size=1 with normalize_advantage=True: one advantage cannot be normalised. Increase batch_size, "
                "or set normalize_advantage=False."
            )
        # A model that has been trained may be loaded to act in one environment alone.
        if self.env is not None and self.num_timesteps == 0:
            self._check_minibatch_size()

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        if self.num_timesteps > 0:
            self._check_minibatch_size(warns=False)
        return super()._setup_learn(*args, **kwargs)

    def _check_minibatch_size(self, warns: bool = True) -> None:
        assert self.env is not None
        size = self.env.num_envs * self.n_steps
        if self.batch_size > size:
            raise ValueError(
                f"batch_size={self.batch_size} is larger than the rollout: n_steps * n_envs = {self.n_steps} * "
                f"{self.env.num_envs} = {size}. Decrease batch_size or increase n_steps."
            )
        if size % self.batch_size and warns:
            warnings.warn(
                f"batch_size={self.batch_size} does not divide the rollout, n_steps * n_envs = {self.n_steps} * "
                f"{self.env.num_envs} = {size}: every epoch has a truncated mini-batch of {size % self.batch_size}.",
                stacklevel=2,
            )

    # --- the rollout and passes over it ---

    def _rollout(self) -> Rollout:
        """Return the rollout just collected, as updates take it."""
        return self._read_buffer()

    def _read_buffer(self) -> Rollout:
        """Return what the buffer holds."""
        return rollout_from_buffer(self.rollout_buffer)

    @th.no_grad()
    def _evaluate(self, function: Callable[[Any], Any], observations: Any) -> list[Any]:
        """Apply ``function`` to all observations, chunk by chunk, in the network's evaluation mode."""
        states = self._states(observations)
        parts = states.split(states.rows_for(max(self.batch_size, 2048)))
        self.policy.set_training_mode(False)
        try:
            return [function(states.part(rows)) for rows in parts]
        finally:
            self.policy.set_training_mode(True)

    def _states(self, data: Any) -> Table:
        """Return data of the rollout as a table whose parts can be passed through the network."""
        return table(data)

    def _minibatches(self, data: Any) -> Table:
        """Return data of the rollout as a table whose parts are minibatches."""
        return table(data)

    def _n_minibatches(self, rollout: Rollout) -> int:
        """Return how many gradient steps an epoch has."""
        data = self._minibatches(rollout)
        return -(-data.n_rows // data.rows_for(self.batch_size))

    @property
    def _normalizes_minibatches(self) -> bool:
        """Whether advantages are normalised in every minibatch."""
        return getattr(self, "normalize_advantage", False) not in (False, "task")

    # --- gradient steps ---

    def _take_steps(
        self,
        name: str,
        loss: StepLoss,
        forward: nn.Module,
        optimizer: th.optim.Optimizer,
        data: Any,
        n_epochs: int,
        stats: RunningMeans,
        **rule: Any,
    ) -> None:
        """Minimise a loss over minibatches for some epochs, compiled where that pays.

        :param name: What the steps are for.
        :param loss: ``loss(forward, *minibatch)``.
        :param forward: The forward pass.
        :param optimizer: Holds the parameters to change.
        :param data: A tuple of what has a ``table``, with as many rows; or a ``Table`` for several calls, in the first
            of which compiled code is checked, and after which ``_forget_rollout`` is called.
        :param n_epochs: Passes over the data.
        :param stats: Receives the loss's scalars.
        :param rule: ``extra`` and ``after`` of ``EagerStep``.
        """
        whole = self._minibatches(data)
        if self._lockstep is not None:
            self._lockstep.ask(name, loss, forward, optimizer, whole, n_epochs, stats, rule)
            return
        step = self._gradient_step(name, loss, forward, optimizer, **rule)
        try:
            for _ in range(n_epochs):
                stats.add(step.epoch(whole, whole.rows_for(self.batch_size)))
        finally:  # Ctrl-C may come at any time, and the model is saved after it
            step.finish()
            if whole is not data:
                step.forget()

    def _gradient_step(
        self, name: str, loss: StepLoss, forward: nn.Module, optimizer: th.optim.Optimizer, **rule: Any
    ) -> EagerStep:
        known = self._compiled_steps.get(name)
        is_plain = is_plain_adam(optimizer)
        if known is not None and is_plain and known.is_of(forward, optimizer):
            known.max_grad_norm, known.batch_size = self.max_grad_norm, self.batch_size
            known.extra = rule.get("extra", ())  # tensors may have made room for others
            return known
        if not (is_plain and self.compile and (known is not None or self._pays_to_compile())):
            return EagerStep(forward, loss, optimizer, self.max_grad_norm, **rule)
        if self.verbose >= 1 and not self._compiled_steps:
            print("Compiling the training step, which takes some seconds once (compile=False trains without).")
        assert isinstance(optimizer, th.optim.Adam)
        step = CompiledStep(forward, loss, optimizer, self.max_grad_norm, self.batch_size, **rule)
        self._compiled_steps[name] = step
        return step

    def _compiled_evaluation(
        self, name: str, function: Callable[..., th.Tensor], forward: nn.Module, data: Table
    ) -> CompiledEvaluation | None:
        """Return a compiled function of the network at states, where gradient steps are compiled.

        :param name: What it is.
        :param function: ``function(forward, *states)``.
        :param forward: The forward pass.
        :param data: The states.
        """
        if not self._compiles_evaluations():
            return None
        if name not in self._evaluations:
            self._evaluations[name] = CompiledEvaluation(function, forward, data)
        return self._evaluations[name]

    def _forget_rollout(self) -> None:
        """Let compiled steps and evaluations let go of the rollout."""
        for step in self._compiled_steps.values():
            step.forget()
        for evaluation in self._evaluations.values():
            evaluation.forget()

    def _compiles_evaluations(self) -> bool:
        if self._lockstep is not None:
            return self._lockstep.compile
        return any(step.is_compiled for step in self._compiled_steps.values())

    def _pays_to_compile(self) -> bool:
        """Return what ``compile`` says, or for ``"auto"`` whether enough gradient steps are ahead."""
        if self.compile != "auto":
            return bool(self.compile) and self._can_compile()
        return self._can_compile() and self._repays_compiling(self._total_timesteps - self._num_timesteps_at_start)

    def _repays_compiling(self, timesteps: int) -> bool:
        """Return whether training for so many timesteps takes longer than compiling."""
        return timesteps / self.batch_size * self.n_epochs >= _STEPS_WORTH_COMPILING

    def _can_compile(self) -> bool:
        """Return whether the algorithm's loss can be compiled with its current settings."""
        return True

    def _set_learning_rate(self, optimizer: th.optim.Optimizer, learning_rate: float, name: str) -> None:
        update_learning_rate(optimizer, learning_rate)
        self.logger.record(f"train/{name}", learning_rate)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *_MADE_AGAIN, "_lockstep"]

    def __getstate__(self) -> dict[str, Any]:
        """What ``copy`` and ``pickle`` take: everything but compiled code and schedules, which are made again."""
        state = self.__dict__ | {name: {} for name in _MADE_AGAIN}
        state.pop("_lockstep", None)  # a copy trains alone
        return state

    # --- what users may change while training runs ---

    def _setup_lr_schedule(self) -> None:
        self.lr_schedule = as_schedule("learning_rate", self.learning_rate)

    def _schedule(self, name: str, default: Any = None, make: Callable[[str, Any], Any] = as_schedule) -> Any:
        """Return the schedule that an argument stands for now; the argument itself stays as it was given.

        :param name: Of the argument.
        :param default: Taken where it is ``None``.
        :param make: Makes the schedule.
        """
        given = getattr(self, name)
        given = default if given is None else given
        if name not in self._schedules or self._schedules[name][0] is not given:
            self._schedules[name] = (given, make(name, given))
        return self._schedules[name][1]

    def _now(self, name: str) -> float:
        """Return the number that an argument stands for at this point of training."""
        return float(self._schedule(name)(self._current_progress_remaining))

    def _scalar(self, value: float) -> Shared:
        """Return a number as a tensor, which compiled code does not take for a constant."""
        return Shared(th.tensor(float(value), device=self.device))

    def _weight(self, value: float) -> Shared | None:
        """Return the weight of a term of the loss, ``None`` for a term that is left out."""
        return None if value == 0 else self._scalar(value)

    # --- the log ---

    def _log(self, prefix: str, values: dict[str, float]) -> None:
        for key, value in values.items():
            self.logger.record(f"{prefix}/{key}", value)

    def _log_explained_variance(self, rollout: Rollout) -> None:
        values, returns = rollout.old_values.cpu().numpy(), rollout.returns.cpu().numpy()
        self.logger.record("train/explained_variance", explained_variance(values, returns))

    def _log_policy(self) -> None:
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _check_finite_parameters(self) -> None:
        if not all(bool(p.isfinite().all()) for p in self.policy.parameters()):
            raise FloatingPointError(
                f"A parameter of the policy is not finite after {self.num_timesteps} timesteps. Lower the learning "
                "rate, clip gradients (max_grad_norm=0.5), or normalise observations and rewards (VecNormalize)."
            )
