"""The recurrent algorithms as users of sb3-contrib know RecurrentPPO: updates, saving, predicting, the checks."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch as th
from recurrent import LAYOUTS, RECURRENT, MaskedEpisodes, collect, cut_as_sb3, episodes, recurrent
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.ppo_recurrent import MlpLstmPolicy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize
from support import LinearExtractor

from sb3_trl import TRPL, FixPO, LeanPPO, LeanRecurrentPPO, RecurrentFixPO, RecurrentTRPL, SeedBatch
from sb3_trl.policies.recurrent import TRPLLstmPolicy
from sb3_trl.seeds.batch import can_batch


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


def assert_same(a, b, atol=0.0):
    assert a.keys() == b.keys()
    for name in a:
        th.testing.assert_close(a[name], b[name], atol=atol, rtol=0, msg=name)


# --- the update ---


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("space", ["box", "discrete", "multi_discrete", "multi_binary"])
def test_the_same_sequences_make_the_same_update_as_sb3_contribs(layout, space, monkeypatch):
    """In a rollout that begins in the middle of episodes, with all of it in one minibatch."""
    options = {"policy_kwargs": LAYOUTS[layout], "batch_size": 32, "n_epochs": 3, "ent_coef": 0.01}
    model = recurrent(LeanRecurrentPPO, episodes(2, action_space=space), **options)
    collect(collect(model), first=False)
    other = cut_as_sb3(model, monkeypatch)
    before = state_of(model)
    for each in (model, other):
        each._logger = each.logger if hasattr(each, "_logger") else model.logger
        each.train()
    changed = [name for name, tensor in state_of(model).items() if not th.equal(tensor, before[name])]
    assert len(changed) == len(before) or layout == "shared"
    assert_same(state_of(model), state_of(other), atol=1e-5)


def test_windows_are_the_minibatches():
    model = collect(recurrent(LeanRecurrentPPO, episodes(2, lengths=(40,)), n_steps=16, sequence_length=4))
    whole = model._minibatches(model._rollout())
    assert whole.n_rows == 8
    assert whole.rows_for(model.batch_size) == 2
    assert model._n_minibatches(model._rollout()) == 4
    model.sequence_length = None  # a user may change it
    assert model._minibatches(model._rollout()).n_rows == 2
    assert model._n_minibatches(model._rollout()) == 2


@pytest.mark.parametrize("cls", RECURRENT)
def test_a_window_sees_no_gradient_of_what_was_before(cls):
    """Where sequences are single steps the recurrent weights still learn, from the states of the rollout."""
    states = []
    for length in (None, 1):
        model = collect(recurrent(cls, episodes(2, lengths=(9,)), sequence_length=length))
        model.train()
        states.append(state_of(model))
    weights = [state["lstm_actor.weight_hh_l0"] for state in states]
    assert not th.equal(*weights)


@pytest.mark.parametrize("cls", RECURRENT)
@pytest.mark.parametrize("observation", ["image", "dict"])
def test_images_and_dicts(cls, observation):
    policy = {"image": "CnnLstmPolicy", "dict": "MultiInputLstmPolicy"}[observation]
    kwargs = {"features_extractor_kwargs": {"features_dim": 8}} if observation == "image" else {}
    model = recurrent(cls, episodes(2, observation=observation), policy, policy_kwargs=kwargs)
    before = state_of(model)
    model.learn(64)
    changed = {name for name, tensor in state_of(model).items() if not th.equal(tensor, before[name])}
    assert {"lstm_actor.weight_ih_l0", "lstm_critic.weight_hh_l0", "value_net.weight"} <= changed
    assert model.predict(model.env.observation_space.sample())[0].shape == ()


@pytest.mark.parametrize("cls", RECURRENT)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_update_changes_what_it_should(cls, layout):
    model = recurrent(cls, episodes(2, action_space="box"), policy_kwargs=LAYOUTS[layout], learning_rate=0.01)
    before = state_of(model)
    model.learn(64)
    unchanged = {name for name, tensor in state_of(model).items() if th.equal(tensor, before[name])}
    assert unchanged == set()


def test_trpl_has_optimisers_of_its_own_unless_actor_and_critic_share():
    def model_of(**kwargs):
        return recurrent(RecurrentTRPL, episodes(action_space="box"), policy_kwargs=kwargs)

    policy = model_of().policy
    held = [
        {id(p) for p in optimizer.param_groups[0]["params"]}
        for optimizer in (policy.optimizer, policy.critic_optimizer)
    ]
    assert {id(p) for p in policy.lstm_actor.parameters()} <= held[0]
    assert {id(p) for p in policy.lstm_critic.parameters()} <= held[1]
    assert not held[0] & held[1]
    assert held[0] | held[1] == {id(p) for p in policy.parameters()}
    shared = {"share_features_extractor": True, "features_extractor_class": LinearExtractor}
    for kwargs in (shared, LAYOUTS["shared"]):
        policy = model_of(**kwargs).policy
        assert policy.shares_parameters
        assert {id(p) for p in policy.optimizer.param_groups[0]["params"]} == {id(p) for p in policy.parameters()}


# --- saving, copying, going on ---


@pytest.mark.parametrize("cls", RECURRENT)
def test_training_goes_on_in_the_middle_of_an_episode(cls, tmp_path):
    """Saved and loaded, with the environments as they are, a model learns what it would have learned."""
    options = {"policy_kwargs": {"n_lstm_layers": 2}, "sequence_length": 4, "n_steps": 8}
    model = recurrent(cls, episodes(3, action_space="box"), **options)
    model.learn(48)
    assert model._last_lstm_states.pi[0].any()
    assert not model._last_episode_starts.all()
    model.save(tmp_path / "model")
    env = copy.deepcopy(model.env)
    loaded = cls.load(tmp_path / "model", env=env, device="cpu", force_reset=False)
    assert loaded.sequence_length == 4
    for own, other in zip(loaded._last_lstm_states, model._last_lstm_states, strict=True):
        assert all(map(th.equal, own, other))
    for each in (model, loaded):
        th.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002
        each.learn(48, reset_num_timesteps=False)
    assert_same(state_of(model), state_of(loaded))
    for own, other in zip(loaded._last_lstm_states, model._last_lstm_states, strict=True):
        assert all(map(th.equal, own, other))


@pytest.mark.parametrize("cls", RECURRENT)
def test_copies_and_pickles(cls):
    model = recurrent(cls).learn(32)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model.policy.state_dict()))):
        assert_same(state_of(model), state_of(other) if hasattr(other, "policy") else other)
    buffer = io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    loaded = cls.load(buffer, device="cpu")
    observations = np.stack([model.observation_space.sample() for _ in range(4)])
    (a, states), (b, others) = (each.predict(observations, deterministic=True) for each in (model, loaded))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(states, others)


def test_another_number_of_environments_begins_anew(tmp_path):
    model = recurrent(LeanRecurrentPPO, episodes(2)).learn(32)
    model.save(tmp_path / "model")
    loaded = LeanRecurrentPPO.load(tmp_path / "model", env=episodes(3), device="cpu")
    assert loaded._last_lstm_states.pi[0].shape == (1, 3, 8)
    assert loaded.learn(48).num_timesteps == 48


def test_a_policy_is_saved_with_its_lstms(tmp_path):
    policy = recurrent(RecurrentTRPL, episodes(action_space="box"), policy_kwargs={"covariance": "full"}).policy
    policy.save(tmp_path / "policy")
    loaded = TRPLLstmPolicy.load(tmp_path / "policy", device="cpu")
    assert loaded.lstm_actor.hidden_size == 8
    assert_same(dict(policy.state_dict()), dict(loaded.state_dict()))


# --- predicting ---


@pytest.mark.parametrize("cls", RECURRENT)
def test_predict_takes_states_as_sb3_contribs_does(cls):
    model = recurrent(cls, episodes(2))
    observations = np.stack([model.observation_space.sample() for _ in range(3)])
    actions, states = model.predict(observations, deterministic=True)
    assert states[0].shape == states[1].shape == (1, 3, 8)
    zeros = (np.zeros((1, 3, 8)), np.zeros((1, 3, 8)))
    for own, other in zip(states, model.predict(observations, zeros, np.zeros(3))[1], strict=True):
        np.testing.assert_array_equal(own, other)
    _, later = model.predict(observations, states, np.array([False, True, False]))
    np.testing.assert_allclose(later[0][:, 1], states[0][:, 1], atol=1e-6)  # an episode starts
    assert not np.allclose(later[0][:, 0], states[0][:, 0])
    one, own = model.predict(observations[0], deterministic=True)
    assert one == actions[0]
    np.testing.assert_allclose(own[0][:, 0], states[0][:, 0], atol=1e-6)


@pytest.mark.parametrize("cls", [RecurrentFixPO, RecurrentTRPL])
def test_predict_takes_masks_and_states(cls):
    model = recurrent(cls, episodes(2, cls=MaskedEpisodes))
    model.learn(32)
    observations = np.stack([model.observation_space.sample() for _ in range(30)])
    masks = np.ones((30, 3), bool)
    masks[:, 0] = False
    actions, states = model.predict(observations, action_masks=masks)
    assert set(actions) == {1, 2}
    plain, other = model.predict(observations)
    np.testing.assert_array_equal(states[0], other[0])
    assert 0 in plain
    all_possible = np.ones((30, 3), bool)
    for deterministic_states in (None, states):
        own = model.predict(observations, deterministic_states, deterministic=True, action_masks=all_possible)
        expected = model.predict(observations, deterministic_states, deterministic=True)
        np.testing.assert_array_equal(own[0], expected[0])
        np.testing.assert_array_equal(own[1][1], expected[1][1])
    assert model.predict(observations[0], action_masks=masks[0])[0] in (1, 2)


@pytest.mark.parametrize("cls", RECURRENT)
def test_evaluation_and_callbacks_of_sb3(cls, tmp_path):
    model = recurrent(cls, VecNormalize(episodes(2)))
    evaluation = EvalCallback(VecNormalize(episodes(1)), eval_freq=8, n_eval_episodes=2, verbose=0)
    model.learn(64, callback=[evaluation, CheckpointCallback(16, tmp_path)])
    assert len(evaluation.evaluations_length) == 0  # without a path
    assert evaluation.last_mean_reward > 0
    assert len(list(tmp_path.glob("*.zip"))) == 2
    mean, _ = evaluate_policy(model, model.env, n_eval_episodes=3)
    assert np.isfinite(mean)


# --- the checks ---


@pytest.mark.parametrize("cls", RECURRENT)
@pytest.mark.parametrize("length", [0, -3])
def test_sequences_have_a_step(cls, length):
    with pytest.raises(ValueError, match=f"sequence_length={length} must be at least 1"):
        recurrent(cls, sequence_length=length)


class OwnBuffer(RecurrentRolloutBuffer):
    """As somebody would subclass it."""


@pytest.mark.parametrize("cls", RECURRENT)
def test_buffers_keep_hidden_states(cls):
    with pytest.raises(ValueError, match="rollout_buffer_class=RolloutBuffer keeps no hidden states: use Recurrent"):
        recurrent(cls, rollout_buffer_class=RolloutBuffer)
    with pytest.raises(ValueError, match="use RecurrentDictRolloutBuffer"):
        recurrent(cls, episodes(observation="dict"), "MultiInputLstmPolicy", rollout_buffer_class=OwnBuffer)
    model = recurrent(cls, rollout_buffer_class=OwnBuffer)
    assert type(model.rollout_buffer) is OwnBuffer
    assert model.learn(32).num_timesteps == 32


@pytest.mark.parametrize("cls", RECURRENT)
def test_policies_without_a_memory_are_for_the_others(cls):
    with pytest.raises(ValueError, match=r"Policy MlpPolicy unknown to .*: choose 'MlpLstmPolicy'"):
        recurrent(cls, policy="MlpPolicy")
    with pytest.raises(ValueError, match=f"ActorCriticPolicy is no policy of {cls.__name__}: use 'MlpLstmPolicy'"):
        recurrent(cls, policy=ActorCriticPolicy)


@pytest.mark.parametrize("cls", [FixPO, TRPL, LeanPPO])
def test_policies_with_a_memory_are_for_these(cls):
    with pytest.raises(ValueError, match=r"Policy MlpLstmPolicy unknown to .* RecurrentFixPO, RecurrentTRPL"):
        cls("MlpLstmPolicy", episodes())
    with pytest.raises(ValueError, match=f"has a memory, which {cls.__name__} would not look after: use Recurrent"):
        cls(MlpLstmPolicy, episodes())


def test_trpl_projects_its_own_policies():
    with pytest.raises(ValueError, match=r"RecurrentActorCriticPolicy is no policy of RecurrentTRPL: .*TRPLLstmPolicy"):
        recurrent(RecurrentTRPL, policy=RecurrentActorCriticPolicy)


class OwnSequences(RecurrentActorCriticPolicy):
    @staticmethod
    def _process_sequence(features, lstm_states, episode_starts, lstm):
        return features, lstm_states


def test_what_else_policies_cannot_do():
    env = episodes(action_space="box")
    with pytest.raises(ValueError, match="OwnSequences has a _process_sequence of its own"):
        recurrent(RecurrentFixPO, policy=OwnSequences)
    for name in ("batch_first", "bidirectional"):
        with pytest.raises(ValueError, match=f"lstm_kwargs has '{name}'"):
            recurrent(RecurrentFixPO, policy_kwargs={"lstm_kwargs": {name: True}})
    with pytest.raises(ValueError, match="use_sde is not available"):
        TRPLLstmPolicy(env.observation_space, env.action_space, lambda _: 0.1, use_sde=True)
    with pytest.raises(ValueError, match="did you mean 'lstm_hidden_size'"):
        recurrent(RecurrentTRPL, policy_kwargs={"lstm_hiden_size": 8})


def test_gsde_as_in_sb3():
    """Its noise is kept in the policy: sb3-contrib's own rollouts."""
    for cls in (RecurrentFixPO, LeanRecurrentPPO):
        model = recurrent(cls, episodes(action_space="box"), use_sde=True, sde_sample_freq=4)
        before = state_of(model)
        model.learn(32)
        assert not th.equal(before["log_std"], model.policy.log_std)


def test_target_kl_is_sb3_contribs():
    model = recurrent(LeanRecurrentPPO, episodes(2), target_kl=1e-9, learning_rate=0.1, n_epochs=5)
    assert model.learn(32)._n_updates < 5


@pytest.mark.parametrize("cls", RECURRENT)
def test_no_seed_batches(cls):
    model = recurrent(cls)
    assert not can_batch(model)
    with pytest.raises(ValueError, match=f"A {cls.__name__} has a memory"):
        SeedBatch.of_models(lambda seed: recurrent(cls, seed=seed), [0, 1])


@pytest.mark.parametrize("cls", RECURRENT)
def test_the_run_is_named_after_the_algorithm(cls, tmp_path):
    recurrent(cls, tensorboard_log=str(tmp_path)).learn(32)
    assert [path.name for path in tmp_path.iterdir()] == [f"{cls.__name__}_1"]


def test_defaults_are_sb3_contribs():
    ours, theirs = (cls("MlpLstmPolicy", episodes(), device="cpu") for cls in (LeanRecurrentPPO, RecurrentPPO))
    for name in ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert str(ours.policy) == str(theirs.policy)
