"""Many seeds of one configuration in one process, for little more than the price of one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from sb3_trl.algorithms.base import TrustRegionAlgorithm
from sb3_trl.rollouts.actor import LeanActor
from sb3_trl.rollouts.collection import Turn, can_collect, take_turns
from sb3_trl.seeds.arguments import as_seeds, check_alike, check_apart, environment_maker, own_callbacks
from sb3_trl.seeds.joint_actor import JointActor
from sb3_trl.seeds.lockstep import JointStep, Request, step_one_by_one, train_in_lockstep
from sb3_trl.seeds.random_stream import RandomStream
from sb3_trl.steps.flat_adam import is_plain_adam

__all__ = ["SeedBatch", "can_batch"]


class SeedBatch:
    """K models of one configuration that train side by side, each as it would alone with its seed.

    Each has its own environments, normalisation, optimisers, random stream, log and file. Actions of all seeds come
    from one pass through their stacked networks, and gradient steps are mapped over the seeds and compiled as one
    function. Seed k learns the same in any batch, of one seed or of many, to the last digit on one kind of CPU;
    and what its ``learn`` alone learns, within rounding (of which an environment's chaos makes much, in time).

    Torch's random numbers come from each seed's own stream, except those that callbacks draw in the middle of a
    rollout.

    :param algorithm: ``TRPL``, ``FixPO``, ``PAPI`` or ``LeanPPO``.
    :param policy: As in the algorithm.
    :param env: An environment's id, or a function that maps a seed to an environment or a ``VecEnv``.
    :param seeds: One for each model.
    :param compile: Map gradient steps over the seeds and compile them; with ``False`` every seed takes its own, one
        seed after the other, which is slow.
    :param kwargs: Arguments of the algorithm.
    :raises ValueError: for no seeds or equal ones, environments that models share or that differ, or an algorithm
        whose updates cannot be mapped over seeds.
    """

    def __init__(
        self,
        algorithm: type[TrustRegionAlgorithm],
        policy: Any,
        env: str | Callable[[int], GymEnv],
        seeds: Iterable[int],
        compile: bool = True,
        **kwargs: Any,
    ) -> None:
        if "seed" in kwargs:
            raise ValueError("seed is not an argument of a SeedBatch: give seeds.")
        make_environment = environment_maker(env)

        def make(seed: int) -> TrustRegionAlgorithm:
            return algorithm(policy, make_environment(seed), seed=seed, **kwargs)

        self._make_models(make, seeds, compile)

    @classmethod
    def of_models(
        cls, make: Callable[[int], TrustRegionAlgorithm], seeds: Iterable[int], compile: bool = True
    ) -> SeedBatch:
        """Return a batch of models that ``make`` makes, each of its seed; they may differ in nothing else."""
        batch = cls.__new__(cls)
        batch._make_models(make, seeds, compile)
        return batch

    def _make_models(self, make: Callable[[int], TrustRegionAlgorithm], seeds: Iterable[int], compile: bool) -> None:
        self.seeds = as_seeds(seeds)
        self.compile = compile
        self.models: list[TrustRegionAlgorithm] = []
        self._streams: list[RandomStream] = []
        for seed in self.seeds:
            self.models.append(make(seed))
            _check(self.models[-1], compile)
            self._streams.append(RandomStream(self.models[-1].device))
        check_apart(self.models)
        check_alike(self.models)
        self._steps: dict[Any, JointStep] = {}
        for model in self.models:  # what one compiles serves all
            model._evaluations = self.models[0]._evaluations

    def learn(
        self,
        total_timesteps: int | Callable[[TrustRegionAlgorithm], int],
        callback: Callable[[TrustRegionAlgorithm], MaybeCallback] | None = None,
        log_interval: int | None = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SeedBatch:
        """Train every model for ``total_timesteps`` steps, as its own ``learn`` would.

        However it ends, nothing goes on afterwards: an error or Ctrl-C stops all models, which can be saved, or go on
        learning, as they are then.

        :param total_timesteps: Of each model; or a function that maps a model to its own, where they differ.
        :param callback: Maps a model to its callback. One that stops training stops that model alone.
        :param log_interval: As in SB3.
        :param tb_log_name: Name of the TensorBoard runs, to which the seed is added.
        :param reset_num_timesteps: As in SB3.
        :param progress_bar: Show one bar for the steps of all models together.
        """
        callbacks = own_callbacks(callback, self.models)
        totals = [total_timesteps(m) if callable(total_timesteps) else total_timesteps for m in self.models]
        callers, grad_mode = RandomStream(self.models[0].device), th.is_grad_enabled()
        try:
            with ExitStack() as stack:
                if progress_bar:
                    from tqdm.rich import tqdm  # as SB3's

                    bar = stack.enter_context(tqdm(total=sum(totals)))
                    callbacks = [[*own, _Progress(bar)] for own in callbacks]
                self._learn(totals, callbacks, log_interval, tb_log_name, reset_num_timesteps)
        except BaseException:
            callers.restore()  # Ctrl-C may come even where a block that changes it begins or ends
            th.set_grad_enabled(grad_mode)
            raise
        return self

    def _learn(
        self,
        totals: Sequence[int],
        callbacks: Sequence[list[Any]],
        log_interval: int | None,
        tb_log_name: str | None,
        reset_num_timesteps: bool,
    ) -> None:
        runs = [
            _Run(model, stream, f"{tb_log_name or model.name}_seed{seed}")
            for model, stream, seed in zip(self.models, self._streams, self.seeds, strict=True)
        ]
        for run, total, own in zip(runs, totals, callbacks, strict=True):
            run.start(total, own, reset_num_timesteps)
        iteration = 0
        while running := [run for run in runs if run.goes_on]:
            self._collect(running)
            iteration += 1
            running = [run for run in running if not run.was_stopped]
            for run in running:
                run.progress(iteration, log_interval)
            models, streams = [run.model for run in running], [run.stream for run in running]
            train_in_lockstep(models, streams, self._take_steps, self.compile)
        for run in runs:
            run.callback.on_training_end()

    def _collect(self, runs: Sequence[_Run]) -> None:
        """Collect a rollout of every model, acting for all at once."""
        if not all(can_collect(run.model) for run in runs):
            for run in runs:
                run.collect_alone()
            return
        n_steps = runs[0].model.n_steps
        actors = []
        with ExitStack() as stack:
            for run in runs:
                stack.callback(run.end_rollout)
                with run.stream:
                    run.start_rollout()
                    actors.append(LeanActor(run.model.policy, n_steps, run.model.n_envs))
            joint = JointActor(actors)
            for step in range(n_steps):
                joint.refresh([k for k, run in enumerate(runs) if run.turn and run.turn.policy_has_changed])
                masks = [run.turn and run.turn.action_masks for run in runs]
                actions = joint.act([run.turn and run.turn.observations for run in runs], step, masks)
                for run, own in zip(runs, actions, strict=True):
                    if run.turn is not None:
                        run.send(own)

    def _take_steps(self, requests: Sequence[Request]) -> None:
        """Take the gradient steps that seeds ask for at the same time.

        Those that train other parameters than the others, because a callback has frozen some, take theirs apart.
        """
        model = self.models[0]
        if not self.compile:
            step_one_by_one(requests, model.batch_size)
            return
        groups: dict[Any, list[Request]] = {}
        for request in requests:
            groups.setdefault((request.name, request.variant), []).append(request)
        with RandomStream(model.device):  # compiling must not change the caller's
            for key, alike in groups.items():
                if key not in self._steps:
                    self._steps[key] = JointStep(alike[0], len(self.models), model.batch_size)
                self._steps[key].run(alike)


def can_batch(model: BaseAlgorithm) -> bool:
    """Return whether models like this one can train in a ``SeedBatch``."""
    return isinstance(model, TrustRegionAlgorithm) and _can_join(model) and not _stateful_layers(model.policy)


def _can_join(model: TrustRegionAlgorithm) -> bool:
    return model._can_compile() and is_plain_adam(model.policy.optimizer)


def _stateful_layers(policy: nn.Module) -> set[str]:
    """Return the kinds of layers that draw random numbers or keep statistics in training."""

    def is_stateful(layer: nn.Module) -> bool:
        return isinstance(layer, _DropoutNd) or (isinstance(layer, _NormBase) and layer.track_running_stats)

    return {type(layer).__name__ for layer in policy.modules() if is_stateful(layer)}


def _check(model: Any, compile: bool) -> None:
    if not isinstance(model, TrustRegionAlgorithm):
        raise ValueError(f"{model!r} is no model of TRPL, FixPO, PAPI or LeanPPO, which a SeedBatch trains.")
    if isinstance(model.policy, RecurrentActorCriticPolicy):
        raise ValueError(
            f"A {type(model).__name__} has a memory, whose sequences differ in length from seed to seed: train each "
            "seed by itself."
        )
    if model.env is None:
        raise ValueError(f"This {type(model).__name__} has no environment: every model of a SeedBatch needs its own.")
    if compile and (layers := _stateful_layers(model.policy)):
        raise ValueError(
            f"{', '.join(sorted(layers))}: layers that draw random numbers or keep statistics in training cannot be "
            "mapped over seeds. Leave them out, or set compile=False."
        )
    if not _can_join(model):
        raise ValueError(
            f"The updates of this {type(model).__name__} cannot be mapped over seeds: that needs the plain Adam "
            "optimiser and, for TRPL, a diagonal covariance and the 'kl', 'w2' or 'frobenius' projection; for "
            "FixPO and LeanPPO, a policy of SB3's without gSDE or target_kl."
        )


class _Progress(BaseCallback):
    """Moves a bar that several models share."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self._bar = bar

    def _on_step(self) -> bool:
        self._bar.update(self.training_env.num_envs)
        return True


class _Run:
    """One model's training: what SB3's ``learn`` does, cut into pieces.

    :param model: The model.
    :param stream: Its random stream.
    :param name: Of its TensorBoard run.
    """

    def __init__(self, model: TrustRegionAlgorithm, stream: RandomStream, name: str) -> None:
        self.model = model
        self.stream = stream
        self.name = name
        self.was_stopped = False
        #: What it waits for actions with; ``None`` when its rollout is over.
        self.turn: Turn | None = None
        self._rollout: Generator[Turn, np.ndarray, bool] | None = None

    def start(self, total_timesteps: int, callbacks: list[Any], reset_num_timesteps: bool) -> None:
        """Begin, as ``learn`` does."""
        with self.stream:
            self.total, self.callback = self.model._setup_learn(
                total_timesteps, callbacks, reset_num_timesteps, self.name
            )
            self.callback.on_training_start({"self": self.model, "total_timesteps": self.total}, {})

    @property
    def goes_on(self) -> bool:
        return not self.was_stopped and self.model.num_timesteps < self.total

    def collect_alone(self) -> None:
        with self.stream:
            model = self.model
            assert model.env is not None
            complete = model.collect_rollouts(model.env, self.callback, model.rollout_buffer, model.n_steps)
        self.was_stopped = not complete

    def start_rollout(self) -> None:
        model = self.model
        assert model.env is not None
        self._rollout = take_turns(model, model.env, self.callback, model.rollout_buffer, model.n_steps)
        self.turn = next(self._rollout)

    def send(self, actions: np.ndarray) -> None:
        assert self._rollout is not None
        try:
            self.turn = self._rollout.send(actions)
        except StopIteration as end:
            self.turn, self.was_stopped = None, not end.value

    def end_rollout(self) -> None:
        """Leave the rollout, if it was interrupted."""
        if self._rollout is not None:
            self._rollout.close()

    def progress(self, iteration: int, log_interval: int | None) -> None:
        self.model._update_current_progress_remaining(self.model.num_timesteps, self.total)
        if log_interval is not None and iteration % log_interval == 0:
            self.model.dump_logs(iteration)
