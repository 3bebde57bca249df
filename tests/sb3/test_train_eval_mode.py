"""Layers that behave differently in training and evaluation are in the mode in which SB3's PPO has them."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from support import ALGORITHMS, small, vec_env
from torch import nn

every_algorithm = pytest.mark.parametrize("cls", ALGORITHMS)


class Recording(BaseFeaturesExtractor):
    """Normalises batches, drops numbers out, and keeps the mode in which it saw a batch, with or without gradients."""

    def __init__(self, observation_space) -> None:
        super().__init__(observation_space, features_dim=4)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.calls: list[tuple[bool, bool]] = []

    def forward(self, observations):
        if len(observations) > 1:
            self.calls.append((self.training, th.is_grad_enabled()))
        return self.layers(observations)


def recorded(cls: type):
    """Return a model whose actor's features are recorded, and the record."""
    model = small(cls, vec_env(2), policy_kwargs={"features_extractor_class": Recording})
    calls = model.policy.pi_features_extractor.calls
    calls.clear()
    return model, calls


@every_algorithm
def test_rollouts_are_collected_in_evaluation_mode(cls):
    model, calls = recorded(cls)
    model.policy.set_training_mode(True)
    _, callback = model._setup_learn(16, None)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    assert not any(training for training, _ in calls)
    assert not any(grad for _, grad in calls)
    assert not model.policy.training
    norm = model.policy.pi_features_extractor.layers[1]
    assert norm.num_batches_tracked == 0, "statistics of batches belong to the updates"


@every_algorithm
def test_updates_take_their_gradients_in_training_mode(cls):
    """Whatever has a gradient and a minibatch of PPO's; what only measures is in evaluation mode."""
    modes = {}
    for each in (cls, PPO):
        model, calls = recorded(each)
        _, callback = model._setup_learn(16, None)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        calls.clear()
        model.train()
        modes[each] = ({training for training, grad in calls if grad}, model.policy.training)
        assert model.policy.pi_features_extractor.layers[1].num_batches_tracked > 0
    # FixPO's fixup phase moves the policy as it acts: in evaluation mode.
    assert modes[cls][0] - ({False} if cls.__name__ == "FixPO" else set()) == modes[PPO][0] == {True}
    assert modes[cls][1] == modes[PPO][1]


@every_algorithm
def test_predictions_are_made_in_evaluation_mode(cls):
    model, calls = recorded(cls)
    model.policy.set_training_mode(True)
    actions = [model.predict(np.zeros((2, 3), np.float32), deterministic=True)[0].tolist() for _ in range(3)]
    assert actions[0] == actions[1] == actions[2]
    assert calls == [(False, False)] * 3
    assert not model.policy.training


@every_algorithm
def test_set_training_mode_reaches_every_layer(cls):
    model, _ = recorded(cls)
    for mode in (True, False):
        model.policy.set_training_mode(mode)
        assert {module.training for module in model.policy.modules()} == {mode}
