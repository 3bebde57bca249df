"""The trust region of other algorithms, logged by a callback."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from recurrent import divergences, episodes, recurrent
from sb3_contrib import ARS, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from support import ActionEnv, PointEnv, Recorder, make_model, vec_env
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from sb3_trl import LeanRecurrentPPO, TrustRegionCallback

SMALL = {"n_steps": 32, "device": "cpu", "seed": 0}


class ChoiceEnv(PointEnv):
    """Actions are anything: the reward is random."""

    def __init__(self, action_space: spaces.Space, observation: str = "box") -> None:
        super().__init__(observation=observation)
        self.action_space = action_space

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        return self._observe(), float(self.np_random.normal()), False, self.steps >= self.length, {}


class Witness(BaseCallback):
    """Measure the same by hand: the policy's raw outputs before and after each update."""

    def __init__(self, outputs) -> None:
        super().__init__()
        self.outputs = outputs
        self.before, self.expected, self.logged = None, [], []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        if isinstance(buffer.observations, dict):
            flat = {key: th.as_tensor(x.reshape(-1, *x.shape[2:])) for key, x in buffer.observations.items()}
        else:
            flat = th.as_tensor(buffer.observations.reshape(-1, *buffer.observations.shape[2:]))
        with th.no_grad():
            self.before = (flat, list(self.outputs(self.model.policy, flat)))

    def _on_rollout_start(self) -> None:
        if self.before is None:
            return
        observations, old = self.before
        with th.no_grad():
            new = self.outputs(self.model.policy, observations)
            kl = sum(kl_divergence(p, q) for p, q in zip(new, old, strict=True))
            entropy = sum(p.entropy() for p in new)
        self.expected.append({"kl_mean": kl.mean(), "kl_max": kl.max(), "entropy": entropy.mean()})
        values = self.logger.name_to_value
        self.logged.append({key: values[f"trust_region/{key}"] for key in ("kl_mean", "kl_max", "entropy")})

    def check(self, updates: int) -> None:
        assert len(self.logged) == updates
        for logged, expected in zip(self.logged, self.expected, strict=True):
            assert logged["kl_mean"] > 1e-7
            for key, value in expected.items():
                np.testing.assert_allclose(logged[key], value.item(), rtol=1e-4, atol=1e-7, err_msg=key)


def latent(policy, observations) -> th.Tensor:
    features = policy.extract_features(observations, policy.pi_features_extractor)
    return policy.mlp_extractor.forward_actor(features)


def normals(policy, observations):
    mean = policy.action_net(latent(policy, observations))
    return [Normal(mean[:, i], policy.log_std[i].exp().clone()) for i in range(mean.shape[1])]


def categoricals(policy, observations):
    logits = policy.action_net(latent(policy, observations))
    space = policy.action_space
    sizes = [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.tolist()
    return [Categorical(logits=part) for part in logits.split(sizes, dim=1)]


def bernoullis(policy, observations):
    logits = policy.action_net(latent(policy, observations))
    return [Bernoulli(logits=logits[:, i]) for i in range(logits.shape[1])]


def algorithms(policy: str, env):
    yield PPO(policy, env(), learning_rate=1e-3, batch_size=16, n_epochs=2, **SMALL)
    yield A2C(policy, env(), **SMALL)
    yield TRPO(policy, env(), batch_size=64, **SMALL)


SPACES = [
    (spaces.Box(-1, 1, (2,)), normals),
    (spaces.Discrete(3), categoricals),
    (spaces.MultiDiscrete([2, 3]), categoricals),
    (spaces.MultiBinary(2), bernoullis),
]


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize(("space", "outputs"), SPACES, ids=lambda x: type(x).__name__)
def test_values_of_other_algorithms(space, outputs):
    for model in algorithms("MlpPolicy", lambda: vec_env(2, ChoiceEnv, action_space=space)):
        witness = Witness(outputs)
        # Chunks smaller than the rollout, and of another size at its end.
        model.learn(64 * 4, callback=CallbackList([TrustRegionCallback(chunk_size=25), witness]))
        witness.check(updates=3)


def test_dict_observations():
    env = vec_env(2, ChoiceEnv, action_space=spaces.Discrete(3), observation="dict")
    model = PPO("MultiInputPolicy", env, learning_rate=1e-3, batch_size=16, n_epochs=2, **SMALL)
    witness = Witness(categoricals)
    model.learn(64 * 3, callback=CallbackList([TrustRegionCallback(chunk_size=25), witness]))
    witness.check(updates=2)


def exploring(policy, observations):
    distribution = policy.get_distribution(observations).distribution
    return [Normal(distribution.mean[:, i].clone(), distribution.stddev[:, i].clone()) for i in range(2)]


def test_state_dependent_exploration():
    env = vec_env(2, ChoiceEnv, action_space=spaces.Box(-1, 1, (2,)))
    model = PPO("MlpPolicy", env, learning_rate=1e-3, batch_size=16, n_epochs=2, use_sde=True, **SMALL)
    witness = Witness(exploring)
    model.learn(64 * 3, callback=CallbackList([TrustRegionCallback(), witness]))
    witness.check(updates=2)


class Comparison(BaseCallback):
    """Collect what TRPL logs itself and what the callback makes of the same update."""

    def __init__(self) -> None:
        super().__init__()
        self.own: list[dict] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.own.append(dict(self.logger.name_to_value))


@pytest.mark.parametrize("kwargs", [{}, {"covariance": "full", "contextual_std": True}])
def test_agrees_with_the_log_of_trpl(kwargs):
    model, before, after = make_model(policy_kwargs=kwargs, learning_rate=1e-3), Comparison(), Comparison()
    model.learn(64 * 4, callback=[before, TrustRegionCallback(), after])
    for own, recorded in zip(before.own[1:], after.own[1:], strict=True):
        for key in ("kl_mean", "kl_max", "entropy"):
            np.testing.assert_allclose(
                own[f"trust_region/{key}"], recorded[f"trust_region/{key}"], rtol=1e-3, atol=2e-6, err_msg=key
            )


def test_records_nothing_before_the_first_update():
    model, witness = PPO("MlpPolicy", PointEnv(), batch_size=16, n_epochs=1, **SMALL), Comparison()
    model.learn(32, callback=CallbackList([TrustRegionCallback(), witness]))
    assert not any(key.startswith("trust_region") for log in witness.own for key in log)


def test_does_not_change_the_training():
    def train(callback) -> dict[str, th.Tensor]:
        model = PPO("MlpPolicy", PointEnv(), batch_size=16, n_epochs=2, **SMALL)
        return model.learn(32 * 3, callback=callback).policy.state_dict()

    plain, watched = train(None), train(TrustRegionCallback())
    assert all(th.equal(plain[key], watched[key]) for key in plain)


@pytest.mark.parametrize("cls", [DQN, ARS, MaskablePPO])
def test_algorithms_that_cannot_be_watched_are_named(cls):
    model = cls("MlpPolicy", ActionEnv(spaces.Discrete(3)), device="cpu", seed=0)
    with pytest.raises(ValueError, match=rf"it watches PPO, A2C, TRPO .* not {cls.__name__} with "):
        model.learn(64, callback=TrustRegionCallback())
    assert model.num_timesteps == 0


@pytest.mark.parametrize("cls", [RecurrentPPO, LeanRecurrentPPO])
@pytest.mark.parametrize("space", ["box", "discrete", "multi_discrete"])
@pytest.mark.parametrize("chunk_size", [4096, 8])
def test_recurrent_policies_are_watched_with_hidden_states_of_their_own(cls, space, chunk_size):
    class Acts(BaseCallback):
        """Acts through the rollout again, step by step, with both policies."""

        old, n_compared = None, 0

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.old, self.buffer = copy.deepcopy(self.model.policy), copy.deepcopy(self.model.rollout_buffer)

        def _on_rollout_start(self) -> None:
            if self.old is not None:
                kl, logged = divergences(self.model.policy, self.old, self.buffer), self.logger.name_to_value
                assert logged["trust_region/kl_mean"] == pytest.approx(kl.mean().item(), rel=1e-3, abs=1e-6)
                assert logged["trust_region/kl_max"] == pytest.approx(kl.max().item(), rel=1e-3, abs=1e-6)
                assert kl.max() > 1e-4
                self.n_compared += 1

    model, acts = recurrent(cls, episodes(2, action_space=space), learning_rate=0.01), Acts()
    model.learn(96, callback=[TrustRegionCallback(chunk_size), acts])
    assert acts.n_compared == 2


def test_what_another_callback_read_is_not_read_twice():
    """``rollout_buffer.get`` leaves another layout in the buffer."""

    class Reads(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            next(self.model.rollout_buffer.get(8))

    def logs(*callbacks):
        recorder = Recorder()
        model = PPO("MultiInputPolicy", vec_env(2, observation="dict"), batch_size=32, n_epochs=2, **SMALL)
        model.learn(192, callback=[*callbacks, recorder])
        return [log["trust_region/kl_mean"] for log in recorder.logs]

    assert logs(Reads(), TrustRegionCallback()) == logs(TrustRegionCallback(), Reads())


def test_one_callback_watches_two_models():
    """And compares each with itself; what was learned between two trainings of one model counts."""
    callback, recorder = TrustRegionCallback(), Recorder()
    model = PPO("MlpPolicy", vec_env(), batch_size=32, **SMALL)
    model.learn(32, callback=[callback, recorder])
    assert not recorder.logs
    PPO("MlpPolicy", vec_env(shape=(2,)), batch_size=32, **SMALL).learn(32, callback=[callback, recorder])
    assert not recorder.logs
    for n_logs in (0, 1):
        model.learn(32, callback=[callback, recorder], reset_num_timesteps=False)
        assert len(recorder.logs) == n_logs
