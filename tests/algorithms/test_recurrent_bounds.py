"""The guarantee of recurrent policies: checked by acting through the rollout again with both networks."""

import copy

import numpy as np
import pytest
import torch as th
from recurrent import (
    LAYOUTS,
    MaskedEpisodes,
    acted,
    collect,
    divergences,
    episodes,
    recurrent,
    torch_distributions,
    updates,
)
from support import ACTION_SPACES

from sb3_trl import RecurrentFixPO, RecurrentTRPL
from sb3_trl.policies.sequences import steps_of
from sb3_trl.rollouts.sequences import recurrent_rollout

#: Learning rates at which nothing but the guarantee keeps a bound.
WILD = {RecurrentFixPO: {"learning_rate": 0.03}, RecurrentTRPL: {"learning_rate": 0.03, "hard": True}}
#: Of policies, beside the action space: covariances that depend on the state or not, full or diagonal.
GAUSSIANS = [
    {"covariance": covariance, "contextual_std": contextual}
    for covariance in ("diag", "full")
    for contextual in (False, True)
]


def check_fixpo(model, n=3):
    """The bound holds at every step, is not kept by luck, and what is logged is what acting says."""
    largest = []
    for old, new in updates(model, n):
        kl = divergences(old, new, model.rollout_buffer)
        assert kl.max() <= model.kl_bound + 1e-6
        logged = model.logger.name_to_value
        assert logged["fixpo/kl_max"] == pytest.approx(kl.max().item(), abs=1e-6)
        assert logged["trust_region/kl_mean"] == pytest.approx(
            divergences(new, old, model.rollout_buffer).mean().item(), abs=1e-6
        )
        assert logged["trust_region/violation_fraction"] == 0
        largest.append(logged["fixpo/kl_max"])
    assert max(largest) > 0.05 * model.kl_bound


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_fixpo_in_every_action_space(space):
    check_fixpo(recurrent(RecurrentFixPO, episodes(action_space=space), kl_bound=0.02, **WILD[RecurrentFixPO]))


def test_fixpo_where_actions_are_masked():
    model = recurrent(RecurrentFixPO, episodes(cls=MaskedEpisodes), kl_bound=0.02, **WILD[RecurrentFixPO])
    check_fixpo(model)
    masks = model.rollout_buffer.action_masks.reshape(-1, 3)
    taken = model.rollout_buffer.actions.reshape(-1, 1).astype(int)
    assert np.take_along_axis(masks, taken, 1).all()
    assert not masks.all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("length", [None, 1, 7, 100])
def test_fixpo_with_every_lstm_and_window(layout, length):
    options = {"policy_kwargs": LAYOUTS[layout], "sequence_length": length, "kl_bound": 0.02}
    check_fixpo(recurrent(RecurrentFixPO, episodes(1), **options, **WILD[RecurrentFixPO]), n=2)


@pytest.mark.parametrize("options", [{"max_fixup_steps": 1}, {"fixup_batch_size": 4}, {"kl_direction": "new_old"}])
def test_fixpo_whatever_ends_the_fixup_phase(options):
    model = recurrent(RecurrentFixPO, episodes(3), kl_bound=0.01, **options, **WILD[RecurrentFixPO])
    for old, new in updates(model, 3):
        pair = (new, old) if model.kl_direction == "new_old" else (old, new)
        assert divergences(*pair, model.rollout_buffer).max() <= 0.01 + 1e-6
    assert model._rollbacks > 0 or "max_fixup_steps" not in options


def test_fixpo_bounds_the_mean_of_all_steps_however_long_sequences_are():
    model = recurrent(RecurrentFixPO, episodes(2), kl_bound=0.01, kl_statistic="mean", **WILD[RecurrentFixPO])
    worst = 0.0
    for old, new in updates(model, 3):
        kl = divergences(old, new, model.rollout_buffer)
        assert kl.mean() <= 0.01 + 1e-6
        worst = max(worst, kl.max().item())
    assert worst > 0.01
    assert model._rollbacks == 0, "the fixup phase aims at what is checked in the end"


def test_numbers_that_are_not_finite_lead_back_to_the_old_policy():
    model = recurrent(RecurrentFixPO, episodes(2, action_space="box"), learning_rate=1e30)
    for old, new in updates(model, 2):
        kl = divergences(old, new, model.rollout_buffer)
        assert kl.isfinite().all()
        assert kl.max() <= model.kl_bound + 1e-6
    assert model._rollbacks > 0


@pytest.mark.parametrize("cls", [RecurrentFixPO, RecurrentTRPL])
def test_a_frozen_lstm_stays_as_it_is(cls):
    model = recurrent(cls, episodes(2), **WILD[cls])
    model.policy.lstm_actor.requires_grad_(False)
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(64)
    after = model.policy.state_dict()
    changed = {name for name in before if not th.equal(before[name], after[name])}
    assert not any(name.startswith("lstm_actor") for name in changed)
    assert {"action_net.weight", "lstm_critic.weight_hh_l0"} <= changed


def test_without_the_fixup_phase_it_would_not_hold():
    model = recurrent(RecurrentFixPO, fixup="off", kl_bound=0.001, **WILD[RecurrentFixPO])
    assert max(divergences(old, new, model.rollout_buffer).max() for old, new in updates(model, 2)) > 0.001


def test_hidden_states_of_the_old_network_would_say_something_else():
    """A divergence from recorded states in the middle of an episode is not the one that is bounded."""
    model = recurrent(RecurrentFixPO, episodes(2, lengths=(40,)), kl_bound=0.05, **WILD[RecurrentFixPO])
    ((old, new),) = updates(model, 1)
    buffer = model.rollout_buffer
    from_recorded = []
    for step in range(buffer.buffer_size):
        states = tuple(th.as_tensor(x[step]) for x in (buffer.hidden_states_pi, buffer.cell_states_pi))
        arguments = (th.as_tensor(buffer.observations[step]), states, th.as_tensor(buffer.episode_starts[step]))
        with th.no_grad():
            a, b = (torch_distributions(policy.get_distribution(*arguments)[0]) for policy in (old, new))
        from_recorded.append(th.distributions.kl_divergence(a[0], b[0]))
    own = divergences(old, new, buffer)
    assert (th.stack(from_recorded) - own).abs().max() > 0.01 * own.max()


def read_parameters(distribution):
    """The projectable distribution of one step, in float64."""
    return distribution.predicted.double()


def outside(model, old, new):
    """Return by how much the bounds are exceeded at any step, relative to them."""
    buffer, projection = model.rollout_buffer, model.trust_region_layer.projection
    worst = -np.inf
    for before, after in zip(acted(old, buffer, read_parameters), acted(new, buffer, read_parameters), strict=True):
        for name, distance in zip(before.bound_names, projection.distance(after, before), strict=True):
            bound = getattr(model, name) or getattr(projection, name)
            worst = max(worst, (distance.max().item() - bound) / bound)
    return worst


@pytest.mark.parametrize("space", ACTION_SPACES)
def test_hard_trpl_in_every_action_space(space):
    model = recurrent(RecurrentTRPL, episodes(action_space=space), **WILD[RecurrentTRPL])
    found = [outside(model, old, new) for old, new in updates(model, 3)]
    assert max(found) <= 1e-4
    assert max(found) > -0.9, "the bounds were met"


def test_hard_trpl_where_actions_are_masked():
    model = recurrent(RecurrentTRPL, episodes(cls=MaskedEpisodes), **WILD[RecurrentTRPL])
    found = [outside(model, old, new) for old, new in updates(model, 3)]
    assert max(found) <= 1e-4
    assert not model.rollout_buffer.action_masks.all()


@pytest.mark.parametrize("gaussian", GAUSSIANS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hard_trpl_with_every_gaussian_and_lstm(gaussian, layout):
    env = episodes(action_space="box")
    model = recurrent(RecurrentTRPL, env, policy_kwargs={**gaussian, **LAYOUTS[layout]}, **WILD[RecurrentTRPL])
    assert max(outside(model, old, new) for old, new in updates(model, 2)) <= 1e-4


@pytest.mark.parametrize("length", [1, 7, 100])
def test_hard_trpl_with_windows(length):
    model = recurrent(RecurrentTRPL, episodes(1, action_space="box"), sequence_length=length, **WILD[RecurrentTRPL])
    assert max(outside(model, old, new) for old, new in updates(model, 2)) <= 1e-4


@pytest.mark.parametrize("options", [{"projection": "w2"}, {"projection": "joint_kl"}, {"n_regression_epochs": 2}])
def test_hard_trpl_with_other_projections(options):
    model = recurrent(RecurrentTRPL, episodes(action_space="box"), **options, **WILD[RecurrentTRPL])
    for old, new in updates(model, 2):
        if options.get("projection") != "joint_kl":
            assert outside(model, old, new) <= 1e-4
        assert model.logger.name_to_value["trust_region/violation_fraction"] == 0
        assert divergences(old, new, model.rollout_buffer).isfinite().all()


def test_trpl_looks_at_the_old_network_at_every_step():
    """The old parameters are those of acting through the rollout with the old network, whatever the buffer keeps."""
    model = collect(recurrent(RecurrentTRPL, episodes(action_space="box"), sequence_length=3))
    rollout = model._rollout()
    old = model._trust_region(rollout).old
    expected = th.stack(acted(model.policy, model.rollout_buffer, lambda d: d.gaussian.mean))
    th.testing.assert_close(old.mean, expected.transpose(0, 1).flatten(0, 1), atol=1e-6, rtol=0)


def test_bounds_may_depend_on_the_observation_of_every_step():
    from sb3_trl import StateBound

    bound = StateBound(lambda observations: 0.01 + 0.01 * observations[:, 0].abs())
    model = collect(recurrent(RecurrentTRPL, episodes(action_space="box"), mean_bound=bound))
    rollout = model._rollout()
    region = model._trust_region(rollout)
    seen = steps_of(rollout.observations)
    th.testing.assert_close(region.bounds[0], (0.01 + 0.01 * seen[:, 0].abs()).double())


def test_entropy_control_and_the_frozen_old_policy():
    options = {"entropy_schedule": "linear", "target_entropy": -1.0, "entropy_first": True, "hard": True}
    model = recurrent(RecurrentTRPL, episodes(action_space="box"), **options)
    for old, new in updates(model, 2):
        assert model.logger.name_to_value["trust_region/entropy_bound"] < 3
        assert outside(model, old, new) <= 1e-4


@pytest.mark.parametrize("cls", [RecurrentFixPO, RecurrentTRPL])
def test_an_update_does_not_touch_the_rollout(cls):
    model = collect(recurrent(cls, episodes(action_space="box"), sequence_length=4))
    before = copy.deepcopy(vars(model.rollout_buffer))
    model.train()
    for name, value in before.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(model.rollout_buffer, name))
    assert recurrent_rollout(model.rollout_buffer).actions.shape == (32, 2)
