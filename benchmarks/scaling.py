"""What costs grow with: ``python benchmarks/scaling.py``.

Four tables, medians on one thread: a TRPL-KL gradient step against the number of actions and the minibatch size, a
rollout against the number of environments (beside SB3's), an iteration against the number of seeds, and memory over
many iterations.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from training import Contestant, trpl_seeds

from sb3_trl import TRPL
from sb3_trl.algorithms.trust_region import TrustRegion
from sb3_trl.policies.forward import ForwardPass
from sb3_trl.projections import Gaussian
from sb3_trl.rollouts.rollout import Rollout
from sb3_trl.steps.gradient_step import CompiledStep, EagerStep
from sb3_trl.table import table

N_OBSERVATIONS = 17


class Still(gym.Env):
    """Nothing happens, in as many dimensions as are asked for."""

    def __init__(self, n_actions: int) -> None:
        self.observation_space = spaces.Box(-1, 1, (N_OBSERVATIONS,), np.float32)
        self.action_space = spaces.Box(-1, 1, (n_actions,), np.float32)

    def reset(self, *, seed=None, options=None):
        """Return zeros."""
        return np.zeros(N_OBSERVATIONS, np.float32), {}

    def step(self, action):
        """Return zeros."""
        return np.zeros(N_OBSERVATIONS, np.float32), 0.0, False, False, {}


def gradient_step(n_actions: int, batch_size: int, compiled: bool) -> Callable[[], object]:
    """Return a step on a minibatch about half of which is projected."""
    model = TRPL("MlpPolicy", Still(n_actions), n_steps=2 * batch_size, batch_size=batch_size, device="cpu", seed=0)
    observations = th.randn(batch_size, N_OBSERVATIONS)
    with th.no_grad():
        new = model.policy.gaussian(observations)
    old = Gaussian(new.mean + 0.25 * th.randn(batch_size, n_actions) / n_actions**0.5, std=1.01 * new.std)
    actions = old.sample()
    returns = th.randn(batch_size)
    rollout = Rollout(observations, actions, returns, old.log_prob(actions), returns, returns)
    bounds = tuple(th.tensor(bound, dtype=th.float64) for bound in (0.03, 1e-3))
    data = table((rollout, TrustRegion(model.trust_region_layer, old, bounds), model._weights()))
    forward, optimizer = ForwardPass(model.policy, "predicted"), model.policy.optimizer
    if not compiled:
        step = EagerStep(forward, model._policy_loss, optimizer, None)
        return lambda: step(data, data.rows)
    compiled_step = CompiledStep(forward, model._policy_loss, optimizer, None, batch_size)
    everything = th.arange(batch_size)
    return lambda: compiled_step.take(data, everything)


def median(function: Callable[[], object], budget: float = 1.0) -> float:
    """Return the median duration in seconds; at least 7 calls, after 3 to warm up."""
    for _ in range(3):
        function()
    durations: list[float] = []
    end = time.perf_counter() + budget
    while len(durations) < 7 or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        durations.append(time.perf_counter() - start)
    return statistics.median(durations)


def gradient_steps() -> None:
    """Print what a step costs."""
    print("\n| actions | minibatch | eager, µs | compiled, µs |\n|---|---|---|---|", flush=True)
    cases = [(n, 32) for n in (1, 6, 17, 100)] + [(6, size) for size in (512, 4096, 65_536)]
    for n_actions, batch_size in cases:
        eager, compiled = (1e6 * median(gradient_step(n_actions, batch_size, c)) for c in (False, True))
        print(f"| {n_actions} | {batch_size} | {eager:.0f} | {compiled:.0f} |", flush=True)


def rollouts() -> None:
    """Print what a rollout of HalfCheetah-v5 costs, collected here and by SB3."""
    print("\n| environments | µs per step | by SB3 | × |\n|---|---|---|---|", flush=True)
    cases = [(n_envs, False) for n_envs in (1, 2, 4, 8, 16, 32)] + [(1, True), (8, True)]
    for n_envs, is_normalized in cases:
        env: VecEnv = make_vec_env("HalfCheetah-v5", n_envs=n_envs)
        env = VecNormalize(env) if is_normalized else env
        model = TRPL("MlpPolicy", env, n_steps=2048 // n_envs, device="cpu", compile=False)
        _, callback = model._setup_learn(10**9, None)
        callback.on_training_start({}, {})
        arguments = (env, callback, model.rollout_buffer, model.n_steps)
        lean = median(lambda: model.collect_rollouts(*arguments), 3.0)  # noqa: B023
        usual = median(lambda: OnPolicyAlgorithm.collect_rollouts(model, *arguments), 3.0)  # noqa: B023
        name = f"{n_envs}, `VecNormalize`" if is_normalized else n_envs
        print(f"| {name} | {1e6 * lean / 2048:.0f} | {1e6 * usual / 2048:.0f} | {usual / lean:.2f} |", flush=True)


def seed_batches(rounds: int) -> None:
    """Print what an iteration of 2048 steps costs with several seeds."""
    print("\n| seeds | iteration, ms per seed | steps per second, of all seeds |\n|---|---|---|", flush=True)
    for n_seeds in (1, 2, 4, 10, 32):
        contestant = Contestant(trpl_seeds(n_seeds))
        for _ in range(rounds):
            contestant.iterate()
        total = statistics.median(contestant.totals)
        print(f"| {n_seeds} | {1e3 * total / n_seeds:.0f} | {contestant.steps / total:.0f} |", flush=True)


def memory(iterations: int) -> None:
    """Print how memory grows over many iterations of compiled training."""
    env = make_vec_env("HalfCheetah-v5")
    options = {"n_steps": 256, "batch_size": 32, "n_epochs": 2, "n_critic_epochs": 1, "compile": True}
    model = TRPL("MlpPolicy", env, device="cpu", **options)
    peaks = []
    for _ in range(5):
        model.learn(256 * iterations // 5, reset_num_timesteps=False)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    figures = ", ".join(f"{peak:.1f}" for peak in peaks)
    print(f"\nLargest memory after each fifth of {iterations} iterations, MiB: {figures}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=["steps", "rollouts", "seeds", "memory"])
    parser.add_argument("--rounds", type=int, default=5, help="iterations for each number of seeds")
    parser.add_argument("--iterations", type=int, default=200, help="over which memory is watched")
    args = parser.parse_args()
    th.set_num_threads(1)
    tables = {
        "steps": gradient_steps,
        "rollouts": rollouts,
        "seeds": lambda: seed_batches(args.rounds),
        "memory": lambda: memory(args.iterations),
    }
    for name in args.tables:
        tables[name]()


if __name__ == "__main__":
    main()
