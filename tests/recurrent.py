"""What the tests of recurrent policies share: episodes that end anywhere, and acting through them step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import DummyVecEnv
from support import ACTION_SPACES
from torch import distributions as td

from sb3_trl import LeanRecurrentPPO, RecurrentFixPO, RecurrentTRPL
from sb3_trl.policies.categorical import ProjectedCategoricalDistribution
from sb3_trl.policies.distributions import ProjectedGaussianDistribution
from sb3_trl.policies.masks import apply_masks

RECURRENT = [RecurrentFixPO, RecurrentTRPL, LeanRecurrentPPO]
#: What LSTMs there are.
LAYOUTS: dict[str, dict[str, Any]] = {
    "two": {},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False, "share_features_extractor": True},
    "actor": {"enable_critic_lstm": False},
    "deep": {"n_lstm_layers": 2},
}


class Episodes(gym.Env):
    """Episodes of different lengths, every other one of which ends by a time limit.

    :param action_space: Of any kind.
    :param observation: ``"box"``, ``"dict"`` or ``"image"``.
    :param lengths: Of the episodes, in turns.
    """

    def __init__(
        self, action_space: str = "discrete", observation: str = "box", lengths: tuple[int, ...] = (1, 5, 3, 11, 4)
    ) -> None:
        self.action_space = copy.deepcopy(ACTION_SPACES[action_space])
        box = spaces.Box(-1.0, 1.0, (3,))
        self.observation_space: spaces.Space = {
            "box": box,
            "dict": spaces.Dict({"a": box, "b": spaces.Discrete(3)}),
            "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
        }[observation]
        self.lengths, self.episode, self.steps = lengths, -1, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.episode, self.steps = self.episode + 1, 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self.steps += 1
        is_over = self.steps >= self.lengths[self.episode % len(self.lengths)]
        by_limit = self.episode % 2 == 0
        reward = float(np.sum(action)) + self.steps
        return self.observation_space.sample(), reward, is_over and not by_limit, is_over and by_limit, {}


class MaskedEpisodes(Episodes):
    """One of the three actions is impossible in every step."""

    def action_masks(self) -> np.ndarray:
        masks = np.ones(3, bool)
        masks[self.steps % 3] = False
        return masks


def episodes(n_envs: int = 2, cls: type[Episodes] = Episodes, **kwargs: Any) -> DummyVecEnv:
    """Environments that are not in the same step of an episode."""
    env = DummyVecEnv([lambda: cls(**kwargs) for _ in range(n_envs)])
    for index, one in enumerate(env.envs):
        one.episode = 2 * index
    env.seed(0)
    return env


def recurrent(cls: type, env: Any = None, policy: Any = "MlpLstmPolicy", **kwargs: Any) -> Any:
    """Return a small model of any of the recurrent algorithms, also of sb3-contrib's."""
    options: dict[str, Any] = {"n_steps": 16, "batch_size": 8, "n_epochs": 2, "seed": 0, "device": "cpu"}
    options |= {"n_critic_epochs": 1} if cls is RecurrentTRPL else {}
    own = {"lstm_hidden_size": 8, "net_arch": [8]} | (kwargs.pop("policy_kwargs", None) or {})
    return cls(policy, episodes() if env is None else env, policy_kwargs=own, **(options | kwargs))


def collect(model: Any, first: bool = True) -> Any:
    """Collect one rollout without an update, and return the model."""
    _, callback = model._setup_learn(10_000, None, reset_num_timesteps=first)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


@th.no_grad()
def acted(policy: Any, buffer: Any, read: Callable[[Any], Any]) -> list[Any]:
    """Act through a rollout again, one step at a time, from the states at its start.

    :param policy: With its own hidden states.
    :param buffer: The rollout, ``(n_steps, n_envs)``.
    :param read: What to take from the distribution of each step.
    """
    policy.set_training_mode(False)
    states = tuple(th.as_tensor(x[0].copy()) for x in (buffer.hidden_states_pi, buffer.cell_states_pi))
    found = []
    for step in range(buffer.buffer_size):
        arrays = buffer.observations
        now = {key: x[step] for key, x in arrays.items()} if isinstance(arrays, dict) else arrays[step]
        starts = th.as_tensor(buffer.episode_starts[step])
        distribution, states = policy.get_distribution(obs_as_tensor(now, policy.device), states, starts)
        if hasattr(buffer, "action_masks"):
            distribution = apply_masks(distribution, th.as_tensor(buffer.action_masks[step]).bool())
        found.append(read(distribution))
    return found


def torch_distributions(distribution: Any) -> list[td.Distribution]:
    """Return independent factors, float64, of what a policy's distribution is."""
    if isinstance(distribution, ProjectedGaussianDistribution):
        gaussian = distribution.gaussian
        mean, covariance = gaussian.mean.double(), gaussian.covariance.double()
        return [td.MultivariateNormal(mean, covariance.expand(len(mean), *covariance.shape[-2:]))]
    if isinstance(distribution, ProjectedCategoricalDistribution):
        factors = zip(distribution.sizes, distribution.categorical.log_probs.double().unbind(-2), strict=True)
        return [td.Categorical(logits=log_probs[:, :size]) for size, log_probs in factors]
    known = distribution.distribution
    known = known if isinstance(known, list) else [known]
    return [
        td.Independent(td.Normal(one.mean.double(), one.stddev.double()), 1)
        if isinstance(one, td.Normal)
        else td.Independent(td.Bernoulli(logits=one.logits.double()), 1)
        if isinstance(one, td.Bernoulli)
        else td.Categorical(logits=one.logits.double())
        for one in known
    ]


def divergences(old: Any, new: Any, buffer: Any) -> th.Tensor:
    """Return KL(old ‖ new) at every step of a rollout, ``(n_steps, n_envs)``, each with its own hidden states."""
    pairs = zip(acted(old, buffer, torch_distributions), acted(new, buffer, torch_distributions), strict=True)
    return th.stack([sum(td.kl_divergence(p, q) for p, q in zip(a, b, strict=True)) for a, b in pairs])


def updates(model: Any, n: int) -> Iterator[tuple[Any, Any]]:
    """Yield the policies before and after each of some updates; the rollout is in the buffer."""
    for index in range(n):
        collect(model, first=index == 0)
        old = copy.deepcopy(model.policy)
        model.train()
        yield old, model.policy


def cut_as_sb3(model: Any, monkeypatch: Any) -> RecurrentPPO:
    """Return sb3-contrib's model with the same policy and rollout, whose minibatches begin at the first step."""
    monkeypatch.setattr(np.random, "randint", lambda _: 0)
    options = {name: getattr(model, name) for name in ("n_steps", "batch_size", "n_epochs", "ent_coef", "gamma")}
    other = recurrent(RecurrentPPO, model.env, policy_kwargs=model.policy_kwargs, **options)
    other.policy.load_state_dict(model.policy.state_dict())
    other.rollout_buffer = copy.deepcopy(model.rollout_buffer)
    other.rollout_buffer.actions = other.rollout_buffer.actions.astype(np.float32)  # it cannot take integers as bits
    return other
