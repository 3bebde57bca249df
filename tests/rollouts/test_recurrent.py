"""Rollouts of recurrent policies: what sb3-contrib's would hold, hidden states and all."""

import copy

import numpy as np
import pytest
import torch as th
from recurrent import LAYOUTS, RECURRENT, MaskedEpisodes, collect, episodes, recurrent
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_trl import LeanRecurrentPPO, RecurrentFixPO, RecurrentTRPL
from sb3_trl.rollouts.recurrent import can_collect_recurrent

#: A policy that does what its mean says, so that others with the same weights do the same.
SURE = {"log_std_init": -14.0}
HIDDEN = ["hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf"]


def twins(env=episodes, policy="MlpLstmPolicy", **kwargs):
    """A model of ours and one of sb3-contrib's, with the same weights and environments."""
    both = [recurrent(cls, env(), policy, **kwargs) for cls in (LeanRecurrentPPO, RecurrentPPO)]
    both[1].policy.load_state_dict(both[0].policy.state_dict())
    return both


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("observation", ["box", "dict"])
def test_a_rollout_is_sb3_contribs(layout, observation):
    """Over two rollouts, the first of which ends in the middle of episodes."""
    policy = "MultiInputLstmPolicy" if observation == "dict" else "MlpLstmPolicy"
    options = {"policy_kwargs": {**SURE, **LAYOUTS[layout]}}
    models = twins(lambda: episodes(3, observation=observation, action_space="box"), policy, **options)
    for first in (True, False):
        for model in models:
            collect(model, first)
        ours, theirs = (model.rollout_buffer for model in models)
        assert theirs.episode_starts.any(0).all()
        assert can_collect_recurrent(models[0])
        names = ["rewards", "values", "advantages", "returns", "episode_starts", "actions", *HIDDEN]
        for name in names:
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=2e-4, rtol=1e-5, err_msg=name)
        assert ours.full
        pairs = zip(
            [x for states in models[0]._last_lstm_states for x in states],
            [x for states in models[1]._last_lstm_states for x in states],
            strict=True,
        )
        for own, other in pairs:
            th.testing.assert_close(own, other, atol=1e-5, rtol=0)


@th.no_grad()
def forwarded(model, start):
    """Act through the rollout again with sb3-contrib's ``forward``, and check what is stored of every step."""
    policy, buffer, states = model.policy, model.rollout_buffer, start
    policy.set_training_mode(False)
    for step in range(buffer.buffer_size):
        for name, tensor in zip(HIDDEN, (*states.pi, *states.vf), strict=True):
            np.testing.assert_allclose(getattr(buffer, name)[step], tensor, atol=1e-6, err_msg=name)
        arguments = (th.as_tensor(buffer.observations[step]), states, th.as_tensor(buffer.episode_starts[step]))
        _, values, _, after = RecurrentActorCriticPolicy.forward(policy, *arguments)
        distribution, _ = policy.get_distribution(arguments[0], states.pi, arguments[2])
        actions = th.as_tensor(buffer.actions[step]).float()
        log_probs = distribution.log_prob(actions.flatten() if model.action_space.shape == () else actions)
        np.testing.assert_allclose(buffer.values[step], values.flatten(), atol=1e-5)
        np.testing.assert_allclose(buffer.log_probs[step], log_probs, atol=1e-5)
        states = after
    return states


@pytest.mark.parametrize("cls", RECURRENT)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("space", ["box", "discrete", "multi_discrete", "multi_binary"])
def test_every_step_is_that_of_acting_with_forward(cls, layout, space):
    model = recurrent(cls, episodes(2, action_space=space), policy_kwargs=LAYOUTS[layout])
    states = copy.deepcopy(model._last_lstm_states)
    for first in (True, False):
        states = forwarded(collect(model, first), states)
    for own, other in zip(model._last_lstm_states, states, strict=True):
        th.testing.assert_close(own, other, atol=1e-6, rtol=0)


class Looker(BaseCallback):
    """Keeps the names of ``locals``, and what sb3-contrib has there in every step."""

    def __init__(self):
        super().__init__()
        self.steps, self.names, self.at_end = [], [], None

    def _on_step(self):
        known = self.locals
        self.names.append({*known} | {key for key in ("values", "log_probs", "lstm_states") if key in known})
        wanted = ("values", "log_probs", "obs_tensor", "episode_starts", "actions")
        self.steps.append({name: th.as_tensor(known[name]).clone() for name in wanted})
        self.steps[-1]["hidden"] = known["lstm_states"].vf[0]
        self.steps[-1]["before"] = self.model._last_lstm_states.pi[1]
        return True

    def _on_rollout_end(self):
        self.at_end = [self.locals["values"].clone(), self.locals["lstm_states"].pi[0]]


def test_callbacks_find_what_they_find_with_sb3_contrib():
    models = twins(lambda: episodes(3, action_space="box"), policy_kwargs=SURE)
    looks, before = [Looker(), Looker()], copy.deepcopy(models[1].policy.state_dict())
    for model, look in zip(models, looks, strict=True):
        model.learn(48, callback=look)
    ours, theirs = looks
    own = {"values", "log_probs", "lstm_states", "obs_tensor", "episode_starts"}
    assert theirs.names[3] - {"idx", "done_"} <= ours.names[3] | own
    for a, b in zip(ours.steps, theirs.steps, strict=True):
        a.pop("log_probs")
        b.pop("log_probs")  # of actions that differ in the last digit, where the density is that high
        for name in a:
            th.testing.assert_close(a[name].float(), b[name].float(), atol=1e-4, rtol=0, msg=name)
    # When a rollout is over, the values are those of the states after it, as in SB3.
    models[1].policy.load_state_dict(before)
    after = models[1]._last_lstm_states
    starts = th.as_tensor(models[1]._last_episode_starts).float()
    with th.no_grad():
        values = models[1].policy.predict_values(th.as_tensor(models[1]._last_obs), after.vf, starts)
    th.testing.assert_close(ours.at_end, [values, after.pi[0]], atol=1e-4, rtol=0)


class Stirrer(BaseCallback):
    """Changes the policy in the middle of a rollout, and keeps each that acted."""

    def __init__(self, at=(5, 9)):
        super().__init__()
        self.at, self.n, self.acting = at, 0, []

    def _on_rollout_start(self):
        self.n, self.acting = 0, [(0, copy.deepcopy(self.model.policy))]

    def _on_step(self):
        self.n += 1
        if self.n in self.at:
            with th.no_grad():
                for p in self.model.policy.parameters():
                    p.add_(0.1 * th.randn(p.shape, generator=th.Generator().manual_seed(self.n)))
            self.acting.append((self.n, copy.deepcopy(self.model.policy)))
        return True


@pytest.mark.parametrize("cls", RECURRENT)
def test_steps_are_those_of_the_policy_that_acted(cls):
    """Where a callback changes it, hidden states go on from where they were."""
    model, stirrer = recurrent(cls, episodes(2)), Stirrer()
    _, callback = model._setup_learn(1000, stirrer)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 16)
    buffer, policies = model.rollout_buffer, dict(stirrer.acting)
    zeros = (th.zeros(1, 2, 8), th.zeros(1, 2, 8))
    states = RNNStates(zeros, zeros)
    for step in range(16):
        policy = policies[max(changed for changed in policies if changed <= step)]
        policy.set_training_mode(False)
        arguments = (th.as_tensor(buffer.observations[step]), states, th.as_tensor(buffer.episode_starts[step]))
        with th.no_grad():
            _, values, _, after = RecurrentActorCriticPolicy.forward(policy, *arguments)
            distribution, _ = policy.get_distribution(arguments[0], states.pi, arguments[2])
        np.testing.assert_allclose(buffer.values[step], values.flatten(), atol=1e-5, err_msg=str(step))
        log_probs = distribution.log_prob(th.as_tensor(buffer.actions[step]).flatten())
        np.testing.assert_allclose(buffer.log_probs[step], log_probs, atol=1e-5, err_msg=str(step))
        states = after


class Forgets(BaseCallback):
    """Puts other hidden states in the place of those that the last rollout left."""

    def _on_rollout_start(self):
        zeros = tuple(th.zeros(1, 2, 8) for _ in range(2))
        self.model._last_lstm_states = RNNStates(zeros, zeros)

    def _on_step(self):
        return True


@pytest.mark.parametrize("cls", [*RECURRENT, RecurrentPPO])
def test_a_rollout_begins_with_the_states_that_callbacks_leave(cls):
    model = recurrent(cls, episodes(2, lengths=(100,)))
    model.learn(64, callback=Forgets())
    assert not model.rollout_buffer.hidden_states_pi[0].any()
    model.learn(32, reset_num_timesteps=False)
    buffer = model.rollout_buffer
    rows = buffer.hidden_states_pi[:: buffer.buffer_size] if buffer.generator_ready else buffer.hidden_states_pi[0]
    assert rows.any()


class StopsEarly(BaseCallback):
    def _on_step(self):
        return self.n_calls < 5


def test_a_callback_stops_a_rollout():
    model = recurrent(LeanRecurrentPPO)
    model.learn(64, callback=StopsEarly())
    assert model.num_timesteps == 10
    assert model._n_updates == 0


def test_normalised_observations_are_those_that_the_policy_saw():
    model = recurrent(RecurrentFixPO, VecNormalize(episodes(2)))
    model.learn(64)
    collect(model, first=False)
    forwarded(
        model,
        RNNStates(
            *[
                tuple(
                    th.as_tensor(getattr(model.rollout_buffer, f"{kind}_states_{net}")[0].copy())
                    for kind in ("hidden", "cell")
                )
                for net in ("pi", "vf")
            ]
        ),
    )


class OwnPolicy(RecurrentActorCriticPolicy):
    """What it overrides is called in every step."""

    calls = 0

    def forward(self, *args, **kwargs):
        type(self).calls += 1
        return super().forward(*args, **kwargs)


def test_a_policy_of_somebody_else_acts_itself():
    model = recurrent(RecurrentFixPO, policy=OwnPolicy)
    assert not can_collect_recurrent(model)
    OwnPolicy.calls = 0
    model.learn(32)
    assert OwnPolicy.calls == 16


def test_masks_are_not_forgotten_where_a_policy_acts_itself():
    model = recurrent(RecurrentFixPO, episodes(2, cls=MaskedEpisodes), policy=OwnPolicy)
    with pytest.raises(ValueError, match="Action masks need a policy and a buffer of SB3 or this package, not OwnPol"):
        model.learn(32)
    assert model.learn(32, use_masking=False).num_timesteps == 32


class Doubled(nn.LSTM):
    """An LSTM with a forward of its own."""

    def forward(self, *args):
        output, states = super().forward(*args)
        return 2 * output, tuple(2 * x for x in states)


@pytest.mark.parametrize("cls", RECURRENT)
def test_an_lstm_of_another_kind_is_called_itself(cls):
    model = recurrent(cls, episodes(2))
    model.policy.lstm_actor.__class__ = Doubled
    assert not can_collect_recurrent(model)
    start = copy.deepcopy(model._last_lstm_states)
    forwarded(collect(model), start)
    model.train()


def test_hooks_of_an_lstm_are_called():
    model, calls = recurrent(RecurrentFixPO, episodes(2)), []
    model.policy.lstm_actor.register_forward_hook(lambda *_: calls.append(1))
    collect(model)
    assert len(calls) == 16


@pytest.mark.parametrize(
    "extra", [{"lstm_kwargs": {"bias": False}}, {"lstm_kwargs": {"dropout": 0.5}, "n_lstm_layers": 2}]
)
def test_arguments_of_the_lstm(extra):
    model = recurrent(RecurrentTRPL, episodes(2, action_space="box"), policy_kwargs=extra)
    states = copy.deepcopy(model._last_lstm_states)
    forwarded(collect(model), states)
    model.train()
