"""Lean stepping returns what SB3's DummyVecEnv returns."""

import copy
from contextlib import nullcontext

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_trl.rollouts.stepping import stepping


class Scripted(gym.Env):
    """Counts, and gives away arrays that it changes later."""

    def __init__(self, observation_space: spaces.Space) -> None:
        self.observation_space = observation_space
        self.action_space = spaces.Box(-1, 1, (2,))
        self.shared = np.zeros(3)

    def _observe(self):
        if isinstance(self.observation_space, spaces.Dict):
            return {"a": np.full(2, self.t, np.float32), "b": np.full(1, -self.t, np.float32)}
        if isinstance(self.observation_space, spaces.Discrete):
            return self.t
        return np.full(self.observation_space.shape, self.t, self.observation_space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {"start": True}

    def step(self, action):
        self.t += 1
        self.shared += 1
        info = {"plain": float(action[0]), "name": "x"} if self.t % 2 else {"nested": {"array": self.shared}}
        return self._observe(), 0.5 * self.t, self.t == 5, self.t == 4 and action[1] > 0, info


SPACES = [
    spaces.Box(-10, 10, (3,)),
    spaces.Box(0, 255, (2, 2, 1), np.uint8),
    spaces.Discrete(9),
    spaces.Dict({"a": spaces.Box(-9, 9, (2,)), "b": spaces.Box(-9, 9, (1,))}),
]


def record(space, lean: bool) -> list:
    env = DummyVecEnv([lambda: Scripted(space)] * 3)
    rng, results = np.random.default_rng(0), [env.reset()]
    for _ in range(12):
        actions = rng.uniform(-1, 1, (3, 2))
        results.append(stepping(env)(actions) if lean else env.step(actions))
    results += [env.buf_rews, env.buf_dones, env.buf_infos, env.reset_infos]
    return results


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_the_same_transitions(space):
    """All of them, looked at when it is over: nothing of what was returned may have changed since."""
    np.testing.assert_equal(record(space, lean=True), record(space, lean=False))


def test_nothing_returned_is_shared():
    env = make_vec_env("HalfCheetah-v5", n_envs=2)
    env.reset()
    step = stepping(env)
    first = step(np.zeros((2, 6)))
    kept = copy.deepcopy(first)
    step(np.ones((2, 6)))
    np.testing.assert_equal(first, kept)


@pytest.mark.parametrize("wrapper", [lambda env: env, VecNormalize, VecMonitor, lambda env: VecFrameStack(env, 2)])
def test_the_environment_is_as_it_was_between_steps(wrapper):
    """However a step ends: an environment of its own fails, or is interrupted, in its midst."""
    inner = DummyVecEnv([lambda: Scripted(SPACES[0])])
    env = wrapper(inner)
    env.reset()
    during = []
    for error in (None, RuntimeError, KeyboardInterrupt):
        scripted = inner.envs[0].step

        def step(action, error=error, scripted=scripted):
            during.append("step_wait" in vars(inner))
            if error is not None:
                raise error
            return scripted(action)

        inner.envs[0].step = step
        with nullcontext() if error is None else pytest.raises(error):
            stepping(env)(np.zeros((1, 2)))
        inner.envs[0].step = scripted
        assert "step_wait" not in vars(inner)
    is_direct = wrapper(inner) is inner or wrapper is VecNormalize  # where nobody has to be asked
    assert during == [not is_direct] * 3


def test_a_subclass_is_left_alone():
    class Own(DummyVecEnv):
        def step_wait(self):
            assert "step_wait" not in vars(self)
            return super().step_wait()

    env = Own([lambda: Scripted(SPACES[0])])
    env.reset()
    assert stepping(env) == env.step
