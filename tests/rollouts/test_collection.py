"""Lean rollouts leave SB3's buffer, number for number, given the same noise."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from support import PointEnv, Recorder, make_model, vec_env
from torch import nn

from sb3_trl import TRPL, FixPO, LeanPPO, LeanTRPO
from sb3_trl.policies.actor_critic import MlpPolicy, SingleOptimizerPolicy
from sb3_trl.rollouts.actor import LeanActor
from sb3_trl.rollouts.collection import can_collect
from sb3_trl.rollouts.values import generalized_advantages

from .cases import ACTION_SPACES, N_ENVS, N_STEPS, make


class Keep(Recorder):
    """Keeps what callbacks see."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict] = []

    def _on_step(self) -> bool:
        keys = ("n_steps", "actions", "clipped_actions", "new_obs", "rewards", "dones")
        self.seen.append({key: np.copy(self.locals[key]) for key in keys} | {"timesteps": self.num_timesteps})
        return super()._on_step()


def noise_of(model: OnPolicyAlgorithm, seed: int) -> LeanActor:
    th.manual_seed(seed)
    return LeanActor(model.policy, model.n_steps, model.n_envs)


def collect(model: OnPolicyAlgorithm, lean: bool, monkeypatch) -> tuple[RolloutBuffer, Keep]:
    """Two rollouts with noise of seeds 0 and 1; without ``lean``, by SB3 with a policy that draws that noise."""
    callback = Keep()
    with monkeypatch.context() as patch:
        state = {}

        def get_actions(distribution: Distribution, deterministic: bool = False) -> th.Tensor:
            state["step"] += 1
            actor, latent = state["actor"], state["latent"]
            return actor.combine(actor.layers[-1](latent), actor.noise[state["step"] - 1])

        original = type(model.policy)._get_action_dist_from_latent

        def remember(policy, latent):
            state["latent"] = latent
            return original(policy, latent)

        if not lean:
            patch.setattr(Distribution, "get_actions", get_actions)
            patch.setattr(type(model.policy), "_get_action_dist_from_latent", remember)
        _, callback_list = model._setup_learn(1000, callback)
        callback_list.on_training_start({}, {})
        for seed in range(2):
            state |= {"step": 0, "actor": noise_of(model, seed)}
            th.manual_seed(seed)
            path = model.collect_rollouts if lean else super(type(model).__mro__[1], model).collect_rollouts
            assert path(model.env, callback_list, model.rollout_buffer, model.n_steps)
    return model.rollout_buffer, callback


CASES = [
    *[(FixPO, space, {}) for space in ACTION_SPACES],
    (FixPO, "box", {"normalize": True}),
    (FixPO, "discrete", {"policy_kwargs": {"share_features_extractor": False}}),
    (LeanPPO, "box", {"policy_kwargs": {"activation_fn": nn.ReLU}}),
    (LeanPPO, "box", {"policy": SingleOptimizerPolicy, "policy_kwargs": {"contextual_std": True}}),
    (LeanTRPO, "box", {"normalize": True}),
    (LeanTRPO, "discrete", {}),
    (TRPL, "box", {}),
    (TRPL, "matrix", {"normalize": True}),
    (TRPL, "box", {"policy_kwargs": {"contextual_std": True}}),
    (TRPL, "matrix", {"policy_kwargs": {"covariance": "full"}}),
    (TRPL, "box", {"policy_kwargs": {"covariance": "full", "contextual_std": True}}),
]


@pytest.mark.parametrize(("cls", "space", "kwargs"), CASES)
def test_the_buffer_is_that_of_sb3(monkeypatch, cls, space, kwargs):
    """Also what callbacks see, the episodes' statistics, and the environments' normalisation."""
    models = [make(cls, space, **kwargs) for _ in range(2)]
    assert can_collect(models[0])
    (lean, seen), (usual, expected) = (collect(m, i == 0, monkeypatch) for i, m in enumerate(models))
    for name in ("observations", "actions", "episode_starts"):
        assert np.array_equal(getattr(lean, name), getattr(usual, name)), name
        assert getattr(lean, name).dtype == getattr(usual, name).dtype
    for name in ("rewards", "values", "log_probs", "advantages", "returns"):
        assert np.allclose(getattr(lean, name), getattr(usual, name), rtol=1e-5, atol=1e-5), name
        assert getattr(lean, name).dtype == getattr(usual, name).dtype
    assert usual.episode_starts.sum() > N_ENVS
    assert (lean.pos, lean.full) == (usual.pos, usual.full)
    assert len(seen.seen) == 2 * N_STEPS
    for step, expected_step in zip(seen.seen, expected.seen, strict=True):
        assert all(np.array_equal(step[key], expected_step[key]) for key in step if key != "rewards")
        assert np.allclose(step["rewards"], expected_step["rewards"], rtol=1e-6)
    lengths = [[episode["l"] for episode in m.ep_info_buffer] for m in models]
    assert lengths[0] == lengths[1]
    assert lengths[0]
    assert models[0].num_timesteps == models[1].num_timesteps == 2 * N_STEPS * N_ENVS
    assert np.array_equal(models[0]._last_obs, models[1]._last_obs)
    if kwargs.get("normalize"):
        assert np.array_equal(models[0].env.obs_rms.mean, models[1].env.obs_rms.mean)
        assert np.array_equal(models[0].env.ret_rms.var, models[1].env.ret_rms.var)


@pytest.mark.parametrize("observation", ["dict", "image", "discrete", "multi_discrete", "multi_binary"])
def test_every_observation_space(observation):
    """Values and log-probabilities are those of the policy at what the buffer holds."""
    policy = {"dict": "MultiInputPolicy", "image": "CnnPolicy"}.get(observation, "MlpPolicy")
    small = {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 8}}} if observation == "image" else {}
    model = make_model(vec_env(2, observation=observation), policy, n_steps=16, **small)
    assert can_collect(model)
    model.learn(32, Unchanged())


@pytest.mark.parametrize("shared", [True, False])
def test_an_image_passes_once_through_the_actors_layers(shared):
    """Of a critic with a features extractor of its own, so do the critic's."""
    kwargs = {"share_features_extractor": shared, "features_extractor_kwargs": {"features_dim": 8}}
    model = make_model(vec_env(2, observation="image"), "CnnPolicy", n_steps=16, policy_kwargs=kwargs)
    seen = {"actor": 0, "critic": 0}

    def count(name):
        def hook(module, inputs, output):
            seen[name] += len(output)

        return hook

    model.policy.pi_features_extractor.register_forward_hook(count("actor"))
    model.policy.vf_features_extractor.register_forward_hook(count("critic"))
    _, callback = model._setup_learn(32)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 16)
    of_critic = 32 + 2 + 2  # of the states after a time limit, one of each environment, and after the last step
    assert seen == {"actor": of_critic if shared else 32, "critic": of_critic}


class Unchanged(BaseCallback):
    """Compares the buffer with the policy that filled it."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        batch = next(buffer.get())
        with th.no_grad():
            values, log_probs, _ = self.model.policy.evaluate_actions(batch.observations, batch.actions)
        assert th.allclose(values.flatten(), batch.old_values, atol=1e-5)
        assert th.allclose(log_probs, batch.old_log_prob, atol=1e-4)


class OwnPolicy(MlpPolicy):
    """Somebody's own."""


class OwnBuffer(RolloutBuffer):
    """Somebody's own."""


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (TRPL, {"policy": OwnPolicy}),
        (TRPL, {"rollout_buffer_class": OwnBuffer}),
        (FixPO, {"use_sde": True}),
        (FixPO, {"policy": type("Own", (ActorCriticPolicy,), {})}),
    ],
)
def test_what_others_wrote_takes_the_usual_path(cls, kwargs):
    arguments = {"policy": "MlpPolicy", "env": vec_env(2), "n_steps": 16, "batch_size": 16, "device": "cpu"} | kwargs
    model = cls(**arguments)
    assert not can_collect(model)
    model.learn(32)


def test_a_callback_stops_a_rollout():
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 12

    model = make_model(vec_env(2), n_steps=16)
    model.learn(64, Stop())
    assert model.num_timesteps == 12


@pytest.mark.parametrize("n_envs", [1, 4])
def test_advantages_are_those_of_sb3(n_envs):
    rng = np.random.default_rng(0)
    buffer = RolloutBuffer(64, PointEnv().observation_space, PointEnv().action_space, "cpu", 0.9, 0.97, n_envs)
    for name in ("rewards", "values"):
        getattr(buffer, name)[:] = rng.normal(size=(64, n_envs))
    buffer.episode_starts[:] = rng.random((64, n_envs)) < 0.2
    last_values, dones = rng.normal(size=n_envs).astype(np.float32), rng.random(n_envs) < 0.5
    buffer.compute_returns_and_advantage(th.as_tensor(last_values), dones)
    ours = generalized_advantages(buffer.rewards, buffer.values, buffer.episode_starts, last_values, dones, 0.97, 0.9)
    assert np.array_equal(ours, buffer.advantages)
    assert ours.dtype == np.float32
