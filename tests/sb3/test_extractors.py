"""Features extractors of a user's own: what building a model shows them, and takes from them."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from changes import make
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from support import ALGORITHMS, PointEnv, all_equal, parameters
from torch import nn

from sb3_trl import PAPI, TRPL, FixPO, LeanPPO


def test_an_encoder_that_both_share_may_be_one_object():
    """The same frozen module within two extractors is nothing that actor and critic train together."""
    encoder = nn.Linear(3, 8).requires_grad_(False)

    class Own(BaseFeaturesExtractor):
        def __init__(self, observation_space: spaces.Box) -> None:
            super().__init__(observation_space, 8)
            self.encoder, self.last = encoder, nn.Linear(8, 8)

        def forward(self, observations: th.Tensor) -> th.Tensor:
            return self.last(self.encoder(observations))

    model = make(TRPL, policy_kwargs={"features_extractor_class": Own}).learn(64)
    assert not model.policy.shares_parameters
    encoder.requires_grad_(True)
    assert make(TRPL, policy_kwargs={"features_extractor_class": Own}).policy.shares_parameters


class Tokens(gym.Env):
    """Words from 1 to 5, and a number that is never 0."""

    observation_space = spaces.Box(np.array([1.0, 0.5], np.float32), np.array([5.0, 2.0], np.float32))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action):
        self.t += 1
        return self._observe(), float(action[0]), False, self.t == 9, {}

    def _observe(self):
        return np.array([self.np_random.integers(1, 6), self.np_random.uniform(0.5, 2)], np.float32)


class Embedding(BaseFeaturesExtractor):
    """Has no vector for word 0, chooses a layer by the word, and divides by the number."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 4)
        self.embedding = nn.Embedding(5, 4)
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, observations: th.Tensor) -> th.Tensor:
        words, numbers = observations[:, 0].long() - 1, observations[:, 1:]
        if bool((numbers == 0).any()):
            raise ZeroDivisionError
        embedded = self.embedding(words) / numbers
        routes = [expert(embedded) for k, expert in enumerate(self.experts) if bool((words % 2 == k).any())]
        return th.stack(routes).mean(0)


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("share", [False, True])
def test_extractors_are_shown_observations_of_the_space_alone(cls, share):
    """And parameters that the observation of today does not need are trained, too."""
    if cls is PAPI and share:
        pytest.skip("PAPI moves the policy's hidden layers back, and shares none")
    kwargs = {"features_extractor_class": Embedding, "share_features_extractor": share}
    model = make(cls, Tokens(), policy_kwargs=kwargs, learning_rate=1e-2, max_grad_norm=0.5)
    before = parameters(model)
    model.learn(64)
    for key, value in parameters(model).items():
        assert not key.startswith(("pi_features", "vf_features")) or not th.equal(value, before[key]), key


def test_building_a_model_draws_as_many_random_numbers_as_sb3():
    """Finding the parameters draws none: the weights of equal seeds are those of SB3's policy."""
    ours, own = make(FixPO), make(LeanPPO)
    assert all_equal(parameters(ours), parameters(own))
    space = PointEnv().observation_space
    state = space.np_random.bit_generator.state
    TRPL("MlpPolicy", PointEnv(), device="cpu")
    assert space.np_random.bit_generator.state == state
