"""What subclasses, buffers and callbacks of a user's own may do with SB3's PPO, they may do with every algorithm."""

import copy

import cloudpickle
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from support import ALGORITHMS, FixPO, all_equal, both, parameters, small, vec_env

from sb3_trl import LeanTRPO
from sb3_trl.algorithms.base import LeanRollouts
from sb3_trl.rollouts.collection import can_collect

every_algorithm = pytest.mark.parametrize("cls", ALGORITHMS)


class Scaled(RolloutBuffer):
    """Multiplies rewards by a factor, and counts what it is asked."""

    def __init__(self, *args, factor: float = 1.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.factor, self.n_added = factor, 0

    def add(self, obs, action, reward, *rest) -> None:
        self.n_added += 1
        super().add(obs, action, self.factor * reward, *rest)


@every_algorithm
def test_a_buffer_of_ones_own(cls):
    """It is made with its arguments, asked at every step, and what it holds is learned."""

    def call(each):
        model = small(each, vec_env(2), rollout_buffer_class=Scaled, rollout_buffer_kwargs={"factor": 0.0})
        model.learn(16)
        assert not (can_collect(model) and each is not PPO)
        buffer = model.rollout_buffer
        return type(buffer), buffer.factor, buffer.n_added, np.abs(buffer.rewards).max()

    ours, expected = both(cls, call)
    assert ours[:3] == expected[:3] == (Scaled, 0.0, 8)
    assert small(cls, vec_env(2, observation="dict"), "MultiInputPolicy").rollout_buffer_class is DictRolloutBuffer


@every_algorithm
def test_rollouts_of_ones_own(cls):
    """``collect_rollouts`` and ``train`` of a subclass are called, and may call the class's own."""
    calls = []

    class Own(cls):
        def collect_rollouts(self, env, callback, rollout_buffer, n_rollout_steps):
            calls.append("collect")
            goes_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps=n_rollout_steps)
            rollout_buffer.rewards[:] = 0
            return goes_on and len(calls) < 5

        def train(self):
            calls.append("train")
            super().train()

    model = small(Own, vec_env(2))
    model.learn(160)
    assert calls == ["collect", "train", "collect", "train", "collect"]
    assert model.num_timesteps == 48


@every_algorithm
def test_rollouts_that_pass_by_this_package(cls):
    """SB3's own method fills the buffer with what updates need."""

    class Usual(cls):
        def collect_rollouts(self, *args, **kwargs):
            return super(LeanRollouts, self).collect_rollouts(*args, **kwargs)

    model = small(Usual, vec_env(2), learning_rate=1e-2)
    before = parameters(model)
    model.learn(32)
    assert not all_equal(before, parameters(model))


@pytest.mark.parametrize("cls", [FixPO, LeanTRPO])
def test_rollouts_in_another_environment(cls):
    """``collect_rollouts`` steps the environment that it is given, as SB3's."""

    def call(each):
        model, other = small(each, vec_env(2, length=100)), vec_env(2, length=100)
        _, callback = model._setup_learn(16, None)
        model._last_obs = other.reset()
        model.collect_rollouts(other, callback, model.rollout_buffer, 8)
        return [[env.unwrapped.steps for env in each.envs] for each in (model.env, other)]

    ours, expected = both(cls, call)
    assert ours == expected == [[0, 0], [8, 8]]


@every_algorithm
def test_a_buffer_that_is_not_full_is_not_learned_from(cls):
    def call(each):
        model = small(each, vec_env(2))
        _, callback = model._setup_learn(16, None)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 4)
        assert not model.rollout_buffer.full, "half of it are zeros"
        try:
            model.train()
        except (AssertionError, ValueError):
            return "refused"
        return "learned"

    ours, expected = both(cls, call)
    assert ours == expected == "refused"


@every_algorithm
def test_what_a_callback_changes_in_place_is_learned_from(cls):
    """Rewards, observations and actions, as people shape them in ``_on_step``."""

    class Changes(BaseCallback):
        def _on_step(self) -> bool:
            self.locals["rewards"][:] = 7.0
            self.locals["new_obs"][:] = 0.25
            self.locals["actions"][:] = 0.125
            return True

    def call(each):
        model = small(each, vec_env(2, length=1000))
        _, callback = model._setup_learn(16, Changes())
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 8)
        buffer = model.rollout_buffer
        return [
            np.unique(array).tolist()
            for array in (buffer.rewards, buffer.observations[1:], buffer.actions, model._last_obs)
        ]

    ours, expected = both(cls, call)
    assert ours == expected == [[7.0], [0.25], [0.125], [0.25]]


@every_algorithm
@pytest.mark.parametrize("callback", [None, [], (), [[]], "text", [lambda *_: True], lambda *_: None, lambda *_: 0])
def test_odd_callbacks(cls, callback):
    def call(each):
        return small(each, vec_env(2)).learn(16, callback=callback).num_timesteps

    ours, expected = both(cls, call)
    assert ours == expected


@every_algorithm
def test_arguments_are_not_changed(cls):
    """Dictionaries that are given can be given again."""
    given = {"net_arch": {"pi": [4], "vf": [4]}, "optimizer_kwargs": {"betas": (0.5, 0.9)}}
    policy_kwargs, buffer_kwargs = copy.deepcopy(given), {}
    small(cls, policy_kwargs=policy_kwargs, rollout_buffer_kwargs=buffer_kwargs).learn(16)
    assert policy_kwargs == given
    assert buffer_kwargs == {}


@every_algorithm
def test_copies_learn_on_their_own(cls):
    model = small(cls, vec_env(2)).learn(16)
    before = parameters(model)
    for copied in (copy.deepcopy(model), cloudpickle.loads(cloudpickle.dumps(model))):
        assert all_equal(parameters(copied), before)
        copied.learn(16)
        assert not all_equal(parameters(copied), before)
        assert all_equal(parameters(model), before)
