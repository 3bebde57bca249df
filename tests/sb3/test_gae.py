"""Advantages and returns against sums by hand, for every algorithm, as SB3 defines them."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import VecNormalize
from support import ALGORITHMS, PointEnv, collect, make_model, small, vec_env

from sb3_trl import LeanTRPO

every_algorithm = pytest.mark.parametrize("cls", [*ALGORITHMS, LeanTRPO])

#: V(s) = _SCALE · s + _BIAS, where s is the number of steps since the episode began.
_SCALE, _BIAS = 0.5, 2.0


class CountingEnv(gym.Env):
    """Observations and rewards are numbers of steps: what a return is made of can be seen in it.

    :param length: Steps in an episode.
    :param ends: Whether episodes terminate; otherwise a time limit truncates them.
    """

    def __init__(self, length: int = 5, ends: bool = True) -> None:
        self.observation_space = spaces.Box(0, np.inf, (1,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.length, self.ends = length, ends

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return self._observation(), {}

    def step(self, action):
        self.count += 1
        is_last = self.count == self.length
        return self._observation(), float(self.count), is_last and self.ends, is_last and not self.ends, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.count], np.float32)


class OwnBuffer(RolloutBuffer):
    """SB3's, under another name: it takes SB3's own path."""


def know_the_values(model) -> None:
    """Make the value function V(s)."""
    with th.no_grad():
        model.policy.value_net.weight.fill_(_SCALE)
        model.policy.value_net.bias.fill_(_BIAS)


def by_hand(n_steps: int, length: int, ends: bool, gamma: float, gae_lambda: float) -> tuple[np.ndarray, np.ndarray]:
    """Return advantages and returns of a rollout that begins with an episode: Â_t = Σ_k (γλ)^k δ_{t+k}."""
    values = _SCALE * np.arange(length + 1) + _BIAS
    deltas = np.zeros(n_steps)
    for t in range(n_steps):
        count = t % length
        is_terminal = ends and count == length - 1
        deltas[t] = count + 1 + gamma * values[count + 1] * (not is_terminal) - values[count]
    advantages = np.zeros(n_steps)
    for t in range(n_steps):
        episode_end = min(n_steps, (t // length + 1) * length)
        advantages[t] = sum((gamma * gae_lambda) ** k * deltas[t + k] for k in range(episode_end - t))
    return advantages, advantages + values[np.arange(n_steps) % length]


@every_algorithm
@pytest.mark.parametrize("is_lean", [True, False], ids=["lean", "usual"])
@pytest.mark.parametrize("ends", [True, False], ids=["terminated", "truncated"])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(g, x) for g in (0.0, 0.9, 1.0) for x in (0.0, 0.9, 1.0)])
def test_advantages_and_returns(cls, is_lean, ends, gamma, gae_lambda):
    """Two environments with episodes of different lengths; the rollout ends in the middle of one of them."""
    env = vec_env(2, CountingEnv, ends=ends)
    env.envs[1].unwrapped.length = 4
    buffer = {} if is_lean else {"rollout_buffer_class": OwnBuffer}
    model = small(cls, env, n_steps=12, gamma=gamma, gae_lambda=gae_lambda, policy_kwargs={"net_arch": []}, **buffer)
    know_the_values(model)
    _, callback = model._setup_learn(24, None)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, 12)
    for index, length in enumerate((5, 4)):
        advantages, returns = by_hand(12, length, ends, gamma, gae_lambda)
        np.testing.assert_allclose(model.rollout_buffer.advantages[:, index], advantages, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(model.rollout_buffer.returns[:, index], returns, rtol=1e-5, atol=1e-5)


@every_algorithm
def test_an_episode_goes_on_in_the_next_rollout(cls):
    model = small(cls, vec_env(1, CountingEnv, length=10**6), gamma=0.9, gae_lambda=1.0, policy_kwargs={"net_arch": []})
    _, callback = model._setup_learn(24, None)
    for start in (0, 8):
        know_the_values(model)
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, 8)
        buffer = model.rollout_buffer
        assert buffer.observations.flatten().tolist() == list(range(start, start + 8))
        assert buffer.episode_starts.flatten().tolist() == [float(start == 0)] + [0.0] * 7
        last_value = _SCALE * (start + 8) + _BIAS
        returns = [
            sum(0.9 ** (k - t) * (start + k + 1) for k in range(t, 8)) + 0.9 ** (8 - t) * last_value for t in range(8)
        ]
        np.testing.assert_allclose(buffer.returns.flatten(), returns, rtol=1e-5)


@every_algorithm
def test_time_limits_do_not_end_an_infinite_horizon(cls):
    """A reward of 1 for ever is worth 1/(1 - γ); with a terminal state at the same place it is worth less."""

    class Constant(CountingEnv):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, 1.0, *rest

    worth = {}
    for ends in (False, True):
        model = small(cls, vec_env(1, Constant, ends=ends), gamma=0.5, gae_lambda=1.0, policy_kwargs={"net_arch": []})
        with th.no_grad():
            model.policy.value_net.weight.fill_(0)
            model.policy.value_net.bias.fill_(2.0)  # 1/(1 - γ)
        _, callback = model._setup_learn(24, None)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 8)
        worth[ends] = model.rollout_buffer.returns.flatten()
    np.testing.assert_allclose(worth[False], 2.0, rtol=1e-6)
    np.testing.assert_allclose(worth[True][:5], [2 - 2 * 0.5**k for k in (5, 4, 3, 2, 1)], rtol=1e-6)


@every_algorithm
def test_normalised_rewards_are_what_returns_are_made_of(cls):
    buffers = []
    for each in (cls, PPO):
        env = VecNormalize(vec_env(2, CountingEnv, ends=False), norm_obs=False, gamma=0.9)
        model = small(each, env, n_steps=12, gamma=0.9, policy_kwargs={"net_arch": []})
        know_the_values(model)
        _, callback = model._setup_learn(24, None)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 12)
        buffers.append(model.rollout_buffer)
    for name in ("rewards", "values", "advantages", "returns"):
        np.testing.assert_allclose(getattr(buffers[0], name), getattr(buffers[1], name), rtol=1e-5, err_msg=name)


def test_advantages_are_those_of_gae():
    model = make_model(PointEnv(), n_steps=32)
    rollout = collect(model)
    rewards, starts = (x.flatten() for x in (model.rollout_buffer.rewards, model.rollout_buffer.episode_starts))
    values = np.append(rollout.old_values.numpy(), model.policy.predict_values(th.as_tensor(model._last_obs)).item())
    alive = 1 - np.append(starts[1:], model._last_episode_starts)
    advantage, expected = 0.0, np.zeros(32)
    for i in reversed(range(32)):
        delta = rewards[i] + model.gamma * alive[i] * values[i + 1] - values[i]
        advantage = expected[i] = delta + model.gamma * model.gae_lambda * alive[i] * advantage
    np.testing.assert_allclose(rollout.advantages.numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rollout.returns.numpy(), expected + values[:-1], rtol=1e-4, atol=1e-5)
