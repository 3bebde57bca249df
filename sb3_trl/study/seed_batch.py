"""Many seeds of one configuration in one process, for little more than the price of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from torch import Tensor, nn

from sb3_trl.flat_adam import is_plain_adam
from sb3_trl.lean_actor import LeanActor
from sb3_trl.lean_rollout import can_collect, take_turns
from sb3_trl.on_policy import TrustRegionAlgorithm
from sb3_trl.study.lockstep import FEWEST_TOGETHER, JointStep, Request, filled, train_in_lockstep

__all__ = ["SeedBatch", "can_batch"]


class SeedBatch:
    """K models of one configuration that train side by side, each as it would alone with its seed.

    Each has its own environments, normalisation, optimisers, random stream, log and file. Actions of all seeds come
    from one pass through their stacked networks, and gradient steps are mapped over the seeds and compiled as one
    function. Seed k learns the same in any batch, of one seed or of many, to the last digit on one kind of processor;
    and what its ``learn`` alone learns, within rounding (of which an environment's chaos makes much, in time).

    Torch's random numbers come from each seed's own stream, except those that callbacks draw in the middle of a
    rollout.

    :param algorithm: ``TRPL``, ``FixPO``, ``PAPI`` or ``LeanPPO``.
    :param policy: As in the algorithm.
    :param env: An environment's id, or a function that maps a seed to an environment or a ``VecEnv``.
    :param seeds: One for each model.
    :param compile: Compile the joint step; ``False`` maps without compiling, which is slow.
    :param kwargs: Arguments of the algorithm.
    :raises ValueError: for no seeds or equal ones, or an algorithm whose updates cannot be mapped over seeds.
    """

    def __init__(
        self,
        algorithm: type[TrustRegionAlgorithm],
        policy: Any,
        env: str | Callable[[int], GymEnv],
        seeds: Sequence[int],
        compile: bool = True,
        **kwargs: Any,
    ) -> None:
        if "seed" in kwargs:
            raise ValueError("seed is not an argument of a SeedBatch: give seeds.")

        def make(seed: int) -> TrustRegionAlgorithm:
            environment = gym.make(env) if isinstance(env, str) else env(seed)
            return algorithm(policy, environment, seed=seed, **kwargs)

        self._make_models(make, seeds, compile)

    @classmethod
    def of_models(
        cls, make: Callable[[int], TrustRegionAlgorithm], seeds: Sequence[int], compile: bool = True
    ) -> SeedBatch:
        """Return a batch of models that ``make`` makes, each of its seed; they may differ in nothing else."""
        batch = cls.__new__(cls)
        batch._make_models(make, seeds, compile)
        return batch

    def _make_models(self, make: Callable[[int], TrustRegionAlgorithm], seeds: Sequence[int], compile: bool) -> None:
        self.seeds = list(seeds)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: give one or more different seeds.")
        self.compile = compile
        self.models: list[TrustRegionAlgorithm] = []
        self._streams: list[RandomStream] = []
        for seed in self.seeds:
            self.models.append(make(seed))
            self._streams.append(RandomStream(self.models[-1].device))
        self._steps: dict[str, JointStep] = {}
        self._check()
        for model in self.models:  # what one compiles serves all
            model._evaluations = self.models[0]._evaluations

    def _check(self) -> None:
        first = self.models[0]
        if not can_batch(first):
            raise ValueError(
                f"The updates of this {type(first).__name__} cannot be mapped over seeds: that needs the plain Adam "
                "optimiser and, for TRPL, a diagonal covariance and the 'kl', 'w2' or 'frobenius' projection; for "
                "FixPO and LeanPPO, a policy of SB3's without gSDE or target_kl."
            )

    def learn(
        self,
        total_timesteps: int,
        callback: Callable[[TrustRegionAlgorithm], MaybeCallback] | None = None,
        log_interval: int | None = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
    ) -> SeedBatch:
        """Train every model for ``total_timesteps`` steps, as its own ``learn`` would.

        :param total_timesteps: Of each model.
        :param callback: Maps a model to its callback. One that stops training stops that model alone.
        :param log_interval: As in SB3.
        :param tb_log_name: Name of the TensorBoard runs, to which the seed is added.
        :param reset_num_timesteps: As in SB3.
        """
        runs = [
            _Run(model, stream, seed, total_timesteps, callback, tb_log_name, reset_num_timesteps)
            for model, stream, seed in zip(self.models, self._streams, self.seeds, strict=True)
        ]
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
        return self

    def _collect(self, runs: Sequence[_Run]) -> None:
        """Collect a rollout of every model, acting for all at once."""
        if not all(can_collect(run.model) for run in runs):
            for run in runs:
                run.collect_alone()
            return
        n_steps = runs[0].model.n_steps
        actors = []
        for run in runs:
            with run.stream:
                actors.append(LeanActor(run.model.policy, n_steps, run.model.n_envs))
            run.start_rollout()
        act = joint_actor(actors)
        for step in range(n_steps):
            actions = act([run.observations for run in runs], step)
            for run, own in zip(runs, actions, strict=True):
                if run.observations is not None:
                    run.send(own)

    def _take_steps(self, requests: Sequence[Request]) -> None:
        """Take the gradient steps that seeds ask for at the same time."""
        model, first = self.models[0], requests[0]
        if first.name not in self._steps:
            n_models = len(self.models)
            self._steps[first.name] = JointStep(first, n_models, model.max_grad_norm, model.batch_size, self.compile)
        self._steps[first.name].run(requests)


def can_batch(model: BaseAlgorithm) -> bool:
    """Return whether models like this one can train in a ``SeedBatch``."""
    return isinstance(model, TrustRegionAlgorithm) and model._can_compile() and is_plain_adam(model.policy.optimizer)


class RandomStream:
    """Torch's random numbers of one seed: inside the block, torch goes on where it was when the block was left.

    Starts where torch is now.

    :param device: Its generator is kept besides the CPU's.
    """

    def __init__(self, device: th.device) -> None:
        self._device = device
        self._own = self._read()

    def __enter__(self) -> None:
        self._others = self._read()
        self._write(self._own)

    def __exit__(self, *_: Any) -> None:
        self._own = self._read()
        self._write(self._others)

    def _read(self) -> tuple[Tensor, Tensor | None]:
        return th.get_rng_state(), th.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None

    def _write(self, states: tuple[Tensor, Tensor | None]) -> None:
        th.set_rng_state(states[0])
        if states[1] is not None:
            th.cuda.set_rng_state(states[1], self._device)


class _Run:
    """One model's training: what SB3's ``learn`` does, cut into pieces."""

    def __init__(
        self,
        model: TrustRegionAlgorithm,
        stream: RandomStream,
        seed: int,
        total_timesteps: int,
        callback: Callable[[TrustRegionAlgorithm], MaybeCallback] | None,
        tb_log_name: str | None,
        reset_num_timesteps: bool,
    ) -> None:
        self.model = model
        self.stream = stream
        self.was_stopped = False
        self.observations: Any = None
        own = None if callback is None else callback(model)
        name = f"{tb_log_name or model.name}_seed{seed}"
        with stream:
            self.total, self.callback = model._setup_learn(total_timesteps, own, reset_num_timesteps, name)
            self.callback.on_training_start({"self": model, "total_timesteps": total_timesteps}, {})

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
        self._rollout = take_turns(model, self.callback, model.rollout_buffer, model.n_steps)
        self.observations = next(self._rollout)

    def send(self, actions: np.ndarray) -> None:
        try:
            self.observations = self._rollout.send(actions)
        except StopIteration as end:
            self.observations, self.was_stopped = None, not end.value

    def progress(self, iteration: int, log_interval: int | None) -> None:
        self.model._update_current_progress_remaining(self.model.num_timesteps, self.total)
        if log_interval is not None and iteration % log_interval == 0:
            self.model.dump_logs(iteration)


def joint_actor(actors: Sequence[LeanActor]) -> Callable[[list[Any], int], list[Any]]:
    """Return a function that acts for all seeds at once, through stacked layers where the networks allow it.

    Of a seed that was stopped by a callback, whose observations are ``None``, the actions mean nothing.
    """
    rows = filled(actors, FEWEST_TOGETHER)
    stacked = [stack_layers(layers) for layers in zip(*(actor.layers for actor in rows), strict=True)]
    if not all(actor.is_plain for actor in actors) or any(layer is None for layer in stacked):
        return lambda observations, step: [
            None if own is None else actor.act(own, step) for actor, own in zip(actors, observations, strict=True)
        ]
    device = actors[0].device
    noise = th.stack([actor.noise for actor in rows], 1).unbind()  # of each step: (K, n_envs, d)
    shape = actors[0].policy.observation_space.shape
    assert shape is not None
    inputs = np.zeros((len(rows), actors[0].noise.shape[1], *shape), np.float32)
    tensor = th.from_numpy(inputs)

    def act(observations: list[Any], step: int) -> list[np.ndarray]:
        for index, own in enumerate(observations):
            if own is not None:
                inputs[index] = own
        with th.inference_mode():
            x = tensor.to(device)
            for layer in stacked:
                assert layer is not None
                x = layer(x)
            actions = actors[0].combine(x, noise[step]).cpu().numpy()
        return list(actions.reshape(len(rows), -1, *actors[0].action_shape)[: len(actors)])

    return act


def stack_layers(layers: Sequence[Any]) -> Callable[[Tensor], Tensor] | None:
    """Return one layer of all seeds as a function of ``(K, batch, features)``, ``None`` if it is of no known kind."""
    first = layers[0]
    if isinstance(first, nn.Linear):
        with th.no_grad():
            weight = th.stack([layer.weight.mT for layer in layers])
            bias = th.stack([layer.bias for layer in layers]).unsqueeze(1)
        return lambda x: th.baddbmm(bias, x, weight)
    is_activation = isinstance(first, nn.Module) and not first.state_dict()
    return first if is_activation else None
