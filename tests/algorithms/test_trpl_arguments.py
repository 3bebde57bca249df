"""Every argument of TRPL changes something."""

import inspect

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from support import SHARED, all_equal, make_model, parameters

from sb3_trl import TRPL


class OtherBuffer(RolloutBuffer):
    def __init__(self, *args, factor: float = 0.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.factor = factor

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.returns *= self.factor


ENTROPY = {"entropy_schedule": "exp", "target_entropy": 2.0, "temperature": 0.8}

#: Argument: its value, and what has to be set besides for it to matter.
OPTIONS = {
    "learning_rate": (1e-4, {}),
    "critic_learning_rate": (1e-2, {}),
    "n_steps": (32, {}),
    "batch_size": (16, {}),
    "n_epochs": (3, {}),
    "n_critic_epochs": (3, {}),
    "gamma": (0.5, {}),
    "gae_lambda": (0.5, {}),
    "projection": ("w2", {}),
    "mean_bound": (0.01, {}),
    "cov_bound": (1e-4, {}),
    "kl_bound": (0.05, {"env": "CartPole-v1"}),
    "trust_region_coef": (1.0, {}),
    "entropy_schedule": ("linear", ENTROPY),
    "target_entropy": (1.8, ENTROPY),
    "temperature": (0.1, ENTROPY),
    "entropy_equality": (True, ENTROPY | {"target_entropy": -1.0}),
    "entropy_first": (True, ENTROPY),
    "n_regression_epochs": (1, {}),
    "hard": (True, {}),
    "max_hard_steps": (1, {"hard": True, "learning_rate": 3e-2}),
    "normalize_advantage": (False, {}),
    "ent_coef": (0.1, {}),
    "vf_coef": (0.1, {"policy_kwargs": SHARED}),
    "max_grad_norm": (0.01, {}),
    "rollout_buffer_class": (OtherBuffer, {}),
    "rollout_buffer_kwargs": ({"factor": 0.5}, {"rollout_buffer_class": OtherBuffer}),
    "policy_kwargs": ({"init_std": 0.5}, {}),
    "seed": (1, {}),
}
POLICY_OPTIONS = {
    "covariance": "full",
    "contextual_std": True,
    "init_std": 0.5,
    "min_std": 0.99,
    "net_arch": [8],
    "activation_fn": th.nn.ReLU,
    "ortho_init": False,
    "share_features_extractor": True,
    "features_extractor_class": SHARED["features_extractor_class"],
    "optimizer_class": th.optim.SGD,
    "optimizer_kwargs": {"eps": 1e-1},
}
#: Tested elsewhere: what they change is not the training. (``compile`` makes it faster.)
WITHOUT_EFFECT = {"policy", "env", "stats_window_size", "tensorboard_log", "verbose", "device", "compile"}
#: This one has an effect with normalize_advantage="task" alone (see test_tasks.py).
WITHOUT_EFFECT |= {"tasks"}


def test_the_tables_hold_every_argument():
    arguments = set(inspect.signature(TRPL.__init__).parameters) - {"self", "_init_setup_model"}
    assert arguments == set(OPTIONS) | WITHOUT_EFFECT
    policy_arguments = set(inspect.signature(TRPL.policy_aliases["MlpPolicy"].__init__).parameters)
    policy_arguments -= {"self", "observation_space", "action_space", "lr_schedule", "use_sde"}
    # These two matter with other arguments or observations than here (see sb3/test_spaces.py).
    policy_arguments -= {"features_extractor_kwargs", "normalize_images"}
    assert policy_arguments == set(POLICY_OPTIONS)


def outcome(**kwargs) -> dict[str, th.Tensor]:
    model = make_model(**({"learning_rate": 1e-2} | kwargs))
    model.learn(128)
    return parameters(model)


@pytest.fixture(scope="module")
def default_outcome():
    """What becomes of a model without further arguments, which most of them are compared with."""
    th.manual_seed(0)
    return outcome()


@pytest.mark.parametrize("argument", OPTIONS)
def test_every_argument_changes_the_training(argument, default_outcome):
    value, besides = OPTIONS[argument]
    without = outcome(**besides) if besides else default_outcome
    assert not all_equal(without, outcome(**(besides | {argument: value})))


@pytest.mark.parametrize("argument", POLICY_OPTIONS)
def test_every_policy_argument_changes_the_training(argument, default_outcome):
    besides = {"features_extractor_class": SHARED["features_extractor_class"]} if argument.startswith("share") else {}
    without = outcome(policy_kwargs=besides) if besides else default_outcome
    assert not all_equal(without, outcome(policy_kwargs=besides | {argument: POLICY_OPTIONS[argument]}))


def test_the_stats_window():
    model = make_model(stats_window_size=3)
    model.learn(64)
    assert len(model.ep_info_buffer) == 3
