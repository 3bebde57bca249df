"""Does what an update of TRPL promises come true? The surrogate's improvement beside that of the next rollout.

python benchmarks/agreement.py --env Hopper-v5 --timesteps 200000

Promised is what the surrogate has gained on the states of the update, E[π_new/π_old · Â] − E[Â] with advantages Â as
they are. By the performance difference lemma (Kakade and Langford, 2002) the policies' returns differ by the new
policy's mean advantage under the old one's value function V: what came is the mean of r + γV(s') − V(s) over the next
rollout, less its mean over this one. Both are in the units of normalised rewards, for one step.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trl import TRPL, TRPLPolicy


class Update(NamedTuple):
    """A rollout, and the policy that has collected it."""

    policy: TRPLPolicy
    observations: th.Tensor  # (n, …)
    actions: th.Tensor  # (n, d)
    advantages: np.ndarray  # (n,)
    mean_error: float  # of the value function in one step


class Agreement(BaseCallback):
    """Keeps for each update what was promised and what came."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, float, float]] = []
        self._last: Update | None = None

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        policy, buffer = self.model.policy, self.model.rollout_buffer
        if self._last is not None:
            promised = promise(self._last, policy)
            came = mean_error(self._last.policy, buffer, self.model.gamma) - self._last.mean_error
            self.rows.append((self.model.num_timesteps, promised, came))
        flat = {name: RolloutBuffer.swap_and_flatten(getattr(buffer, name)) for name in ("observations", "actions")}
        observations, actions = (th.as_tensor(array).float() for array in flat.values())
        advantages = RolloutBuffer.swap_and_flatten(buffer.advantages).ravel()
        error = mean_error(policy, buffer, self.model.gamma)
        self._last = Update(copy.deepcopy(policy), observations, actions, advantages, error)


@th.no_grad()
def promise(update: Update, policy: TRPLPolicy) -> float:
    """Return the surrogate's improvement from the policy of before to this one."""
    old, new = (each.predicted(update.observations).log_prob(update.actions) for each in (update.policy, policy))
    ratios = (new - old).exp().numpy()
    return float((ratios * update.advantages).mean() - update.advantages.mean())


@th.no_grad()
def mean_error(policy: TRPLPolicy, buffer: Any, gamma: float) -> float:
    """Return the mean of r + γV(s') − V(s) over all steps but the last of each environment."""
    n_steps, n_envs = buffer.rewards.shape
    observations = th.as_tensor(buffer.observations).float().flatten(0, 1)
    values = policy.predict_values(observations).reshape(n_steps, n_envs).numpy()
    errors = buffer.rewards[:-1] + gamma * values[1:] * (1 - buffer.episode_starts[1:]) - values[:-1]
    return float(errors.mean())


def main() -> None:
    """Print a row for each part of the training: means over its updates, and how much single ones spread."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="Hopper-v5")
    parser.add_argument("--timesteps", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--parts", type=int, default=4)
    arguments = parser.parse_args()
    th.set_num_threads(1)
    env = VecNormalize(make_vec_env(arguments.env, 8, seed=arguments.seed))
    kwargs = {"n_steps": 256, "policy_kwargs": {"init_std": 0.37}, "seed": arguments.seed, "device": "cpu"}
    agreement = Agreement()
    TRPL("MlpPolicy", env, **kwargs).learn(arguments.timesteps, callback=agreement)
    table = pd.DataFrame(agreement.rows, columns=["steps", "promised", "came"])
    print("| until step | promised | came | ± standard error | spread of single updates |\n|---:|---:|---:|---:|---:|")
    for part in np.array_split(np.arange(len(table)), arguments.parts):
        own = table.iloc[part]
        numbers = (own.promised.mean(), own.came.mean(), own.came.sem(), own.came.std())
        print(f"| {own.steps.iloc[-1]} | {' | '.join(f'{1000 * number:.2f}' for number in numbers)} |")
    print("\nIn thousandths of a normalised reward.")


if __name__ == "__main__":
    main()
