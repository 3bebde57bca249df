"""How a rollout is cut into sequences, and that padding is nobody's business."""

import copy

import numpy as np
import pytest
import torch as th
from recurrent import LAYOUTS, acted, collect, episodes, recurrent
from torch import nn

from sb3_trl import LeanRecurrentPPO
from sb3_trl.algorithms.recurrent.lean_ppo import RecurrentActorCriticPolicy
from sb3_trl.policies.action_parameters import ActionsAndValues
from sb3_trl.policies.sequences import Sequences, by_sequence, largest, one_step, replay, sums, with_sequences
from sb3_trl.rollouts.sequences import cut, recurrent_rollout, windows


@pytest.fixture(scope="module")
def model():
    """In its second rollout, which begins in the middle of episodes."""
    return collect(collect(recurrent(LeanRecurrentPPO, episodes(3))), first=False)


def sequences_of(lengths, features=2, hidden=5, layers=1):
    generator = th.Generator().manual_seed(0)
    n, w = sum(lengths), len(lengths)
    states = [th.randn(w, layers, hidden, generator=generator) for _ in range(4)]
    return Sequences(th.randn(n, features, generator=generator), th.tensor(lengths), (*states[:2],), (*states[2:],))


def test_sequences_start_where_episodes_and_the_rollout_start(model):
    buffer = model.rollout_buffer
    sequences = recurrent_rollout(buffer).observations
    starts = buffer.episode_starts.T.astype(bool).copy()
    assert 0 < starts[:, 0].sum() < 3, "some environments are in the middle of an episode"
    at_start = th.tensor(starts[:, 0])
    starts[:, 0] = True
    expected = np.diff(np.flatnonzero(starts.reshape(-1)), append=starts.size)
    np.testing.assert_array_equal(sequences.lengths, expected)
    firsts = th.tensor(starts.cumsum(1)[:, -1]).cumsum(0) - th.tensor(starts.sum(1))  # of each environment
    for i, (env, name) in enumerate((env, name) for env in range(3) for name in ("pi", "vf")):
        recorded = th.as_tensor(getattr(buffer, f"hidden_states_{name}")[0, :, env])
        kept = getattr(sequences, name)[0][firsts[env]]
        assert th.equal(kept, th.zeros_like(kept) if at_start[env] else recorded), i
    inner = th.ones(len(expected), dtype=th.bool)
    inner[firsts] = False
    assert not any(bool(state[inner].any()) for state in (*sequences.pi, *sequences.vf))


@pytest.mark.parametrize("length", [1, 7, 100])
def test_windows_start_from_the_states_of_the_rollout(model, length):
    buffer, whole = model.rollout_buffer, recurrent_rollout(model.rollout_buffer).observations
    parts = windows(buffer, whole, length)
    assert parts.lengths.max() <= length
    assert parts.lengths.sum() == whole.lengths.sum()
    assert th.equal(th.cat([parts.lengths, whole.lengths]).unique(), parts.lengths.unique()) or length < 11
    expected = [min(length, n - start) for n in whole.lengths.tolist() for start in range(0, n, length)]
    assert parts.lengths.tolist() == expected
    # With the network that acted, it makes no difference where sequences are cut.
    forward = ActionsAndValues(model.policy)
    with th.no_grad():
        (a, values), (b, other_values) = forward(whole), forward(parts)
    th.testing.assert_close(a.tensors, b.tensors, atol=1e-6, rtol=0)
    th.testing.assert_close(values, other_values, atol=1e-6, rtol=0)
    assert windows(buffer, whole, None) is whole


def test_a_buffer_that_was_sampled_is_cut_alike(model):
    sampled = copy.deepcopy(model.rollout_buffer)
    next(sampled.get(8))
    a, b = (recurrent_rollout(buffer) for buffer in (model.rollout_buffer, sampled))
    th.testing.assert_close(a, b, atol=0, rtol=0)
    th.testing.assert_close(cut(sampled, None, 3)[1:], cut(model.rollout_buffer, None, 3)[1:], atol=0, rtol=0)


@pytest.mark.parametrize("lengths", [(4,), (3, 3, 3), (1, 6, 2), (5, 1)])
@pytest.mark.parametrize("layers", [1, 2])
def test_replay_is_one_step_after_the_other(lengths, layers):
    sequences = sequences_of(lengths, layers=layers)
    lstm = nn.LSTM(2, 5, layers)
    outputs = replay(lstm, sequences.observations, sequences, sequences.pi)
    expected = []
    for i, part in enumerate(sequences.observations.split(lengths)):
        states = tuple(x[i].unsqueeze(1) for x in sequences.pi)
        for row in part:
            output, states = lstm(row.view(1, 1, -1), states)
            expected.append(output.flatten())
    th.testing.assert_close(outputs, th.stack(expected), atol=1e-6, rtol=0)


def test_padding_changes_nothing():
    """Beside a sequence that is much longer, outputs, gradients and maxima are the same."""
    lstm, short = nn.LSTM(2, 5), sequences_of((3, 5, 2))
    long = sequences_of((3, 5, 2, 40))
    long.observations[:10] = short.observations
    for own, other in zip((*long.pi, *long.vf), (*short.pi, *short.vf), strict=True):
        own[:3] = other
    results = []
    for sequences in (short, long):
        outputs = replay(lstm, sequences.observations, sequences, sequences.pi)[:10]
        gradients = th.autograd.grad(outputs.square().mean(), list(lstm.parameters()))
        values = replay(lstm, sequences.observations, sequences, sequences.pi).sum(1) - 10  # all below what pads
        results.append((outputs, gradients, largest(values, sequences)[:3], sums(values, sequences)[:3]))
    th.testing.assert_close(*results, atol=1e-6, rtol=1e-5)


def test_largest_and_sums_of_every_sequence():
    sequences, values = sequences_of((2, 1, 3)), th.tensor([-3.0, -5, -1, 0, 2, 1], dtype=th.float64)
    assert largest(values, sequences).tolist() == [-3, -1, 2]
    assert sums(values, sequences).tolist() == [-8, -1, 3]
    assert largest(values, th.zeros(6, 2)) is values
    values[1] = np.nan
    assert largest(values, sequences).isnan().tolist() == [True, False, False]


def test_tables_have_a_row_for_every_sequence():
    sequences = sequences_of((2, 1, 3))
    whole = by_sequence((sequences, {"n": th.arange(6)}, None))
    assert whole.n_rows == 3
    assert whole.states_per_row == 2
    assert [whole.rows_for(n) for n in (1, 2, 3, 6)] == [1, 1, 2, 3]
    part, numbers, nothing = whole.part(whole.at(th.tensor([2, 0])).rows)
    assert nothing is None
    assert numbers["n"].tolist() == [3, 4, 5, 0, 1]
    assert th.equal(part.observations, sequences.observations[[3, 4, 5, 0, 1]])
    assert part.lengths.tolist() == [3, 2]
    for own, all_of_them in zip((*part.pi, *part.vf), (*sequences.pi, *sequences.vf), strict=True):
        assert th.equal(own, all_of_them[[2, 0]])
    with pytest.raises(TypeError, match="no sequences"):
        by_sequence(th.zeros(3))


def test_states_that_actor_and_critic_share_are_handed_on_to_both():
    """As one object they are in the table twice."""
    sequences = sequences_of((1, 2))
    sequences = sequences._replace(vf=sequences.pi)
    (part,) = by_sequence((sequences,)).part(by_sequence((sequences,)).at(th.tensor([1])).rows)
    th.testing.assert_close(part.vf, part.pi)
    th.testing.assert_close(part.vf[0], sequences.pi[0][1:])


def test_other_sequences_take_their_place():
    sequences = sequences_of((2, 1))
    data = (recurrent_data := (sequences, th.zeros(3)), [1], None)
    changed = with_sequences(data, lambda found: found._replace(lengths=found.lengths * 0))
    assert changed[0][0].lengths.tolist() == [0, 0]
    assert changed[0][1] is recurrent_data[1]
    assert changed[1:] == data[1:]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_pass_says_what_acting_step_by_step_says(layout):
    """And ``evaluate_actions`` of sb3-contrib."""
    model = collect(recurrent(LeanRecurrentPPO, policy_kwargs=LAYOUTS[layout]))
    rollout, buffer = recurrent_rollout(model.rollout_buffer), model.rollout_buffer
    with th.no_grad():
        actions, values = ActionsAndValues(model.policy)(rollout.observations)
    logits = th.stack(acted(model.policy, buffer, lambda d: d.distribution.logits)).transpose(0, 1).flatten(0, 1)
    th.testing.assert_close(actions.tensors[0], logits, atol=1e-6, rtol=0)
    samples = next(buffer.get(None))
    model.policy.set_training_mode(False)
    arguments = (samples.observations, samples.actions.flatten(), samples.lstm_states, samples.episode_starts)
    with th.no_grad():
        theirs, log_prob, _ = RecurrentActorCriticPolicy.evaluate_actions(model.policy, *arguments)
    mask = samples.mask > 0
    # Theirs are in an order that begins somewhere else.
    th.testing.assert_close(theirs[mask].sort(0)[0], values.sort(0)[0], atol=1e-5, rtol=1e-5)
    ours = actions.log_prob(rollout.actions).sort()[0]
    th.testing.assert_close(log_prob[mask].sort()[0], ours, atol=1e-5, rtol=1e-5)


def test_a_single_observation_is_a_sequence_of_one_step(model):
    observations = th.randn(4, 3)
    assert one_step(nn.Linear(1, 1), observations) is observations
    single = one_step(model.policy, observations)
    zeros = (th.zeros(1, 4, 8), th.zeros(1, 4, 8))
    with th.no_grad():
        expected, _ = model.policy.get_distribution(observations, zeros, th.zeros(4))
        actions, _ = ActionsAndValues(model.policy)(single)
    th.testing.assert_close(actions.tensors[0], expected.distribution.logits, atol=1e-6, rtol=0)
