"""Which parameters are trained, from the start and as it changes while training runs."""

import pytest
import torch as th
from changes import Calls, make
from gymnasium import spaces
from support import ALGORITHMS, LinearExtractor, all_equal, further, parameters, vec_env
from torch import nn

from sb3_trl import PAPI, TRPL, LeanPPO


def freeze(model, n: int) -> None:
    """The hidden layers in the second update, everything in the fourth, the mean's layer in the fifth."""
    policy = model.policy
    policy.requires_grad_(n != 3)
    policy.mlp_extractor.requires_grad_(n not in (1, 3))
    policy.action_net.requires_grad_(n not in (3, 4))


def history_of(cls, n_updates: int, **kwargs) -> list[dict[str, th.Tensor]]:
    """The parameters before every update and after the last, while some are frozen."""
    history = []

    def look(model, n) -> None:
        history.append(parameters(model))
        freeze(model, n)

    model = make(cls, vec_env(2), learning_rate=1e-3, **kwargs).learn(64 * n_updates, Calls(look))
    assert any(step.is_compiled for step in model._compiled_steps.values()) is bool(model.compile)
    return [*history, parameters(model)]


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_what_is_frozen_does_not_move_by_a_bit(cls):
    history = history_of(cls, 6)

    def moved(n: int, part: str) -> bool:
        return any(not th.equal(history[n][key], history[n + 1][key]) for key in history[n] if key.startswith(part))

    assert [moved(n, "mlp_extractor") for n in range(6)] == [True, False, True, False, True, True]
    assert [moved(n, "action_net") for n in range(6)] == [True, True, True, False, False, True]
    assert [moved(n, "value_net") for n in range(6)] == [True, True, True, False, True, True]
    assert not moved(3, "")


@pytest.mark.traced
@pytest.mark.parametrize("cls", [LeanPPO, *further(TRPL)])
def test_freezing_and_unfreezing_compiled(cls):
    """As without compilation."""
    kwargs = {"n_critic_epochs": 0} if cls is TRPL else {}
    for ours, expected in zip(history_of(cls, 3, compile=True, **kwargs), history_of(cls, 3, **kwargs), strict=True):
        for name, value in expected.items():
            assert th.allclose(ours[name], value, rtol=1e-3, atol=1e-5), name


class Encoder(LinearExtractor):
    """A pretrained encoder, frozen, and a layer to train."""

    def __init__(self, observation_space: spaces.Box, is_passed_without_gradient: bool = False) -> None:
        super().__init__(observation_space)
        self.layers.requires_grad_(False)
        self.last = nn.Linear(8, 8)
        self.is_passed_without_gradient = is_passed_without_gradient

    def forward(self, observations: th.Tensor) -> th.Tensor:
        with th.set_grad_enabled(th.is_grad_enabled() and not self.is_passed_without_gradient):
            encoded = self.layers(observations)
        return self.last(encoded)


@pytest.mark.parametrize("without_gradient", [False, True])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("cls", ALGORITHMS)
def test_frozen_encoders(cls, share, without_gradient):
    """From the start; and unfrozen later, they are trained."""
    if cls is PAPI and share:
        pytest.skip("PAPI moves the policy's hidden layers back, and shares none")
    kwargs = {"features_extractor_class": Encoder, "share_features_extractor": share}
    kwargs["features_extractor_kwargs"] = {"is_passed_without_gradient": without_gradient}
    model = make(cls, learning_rate=1e-2, policy_kwargs=kwargs)
    before = parameters(model)
    model.learn(128)
    after = parameters(model)
    encoders = [key for key in before if ".layers." in key]
    assert encoders
    assert all(th.equal(before[key], after[key]) for key in encoders)
    trained = [key for key in before if "pi_features_extractor.last" in key or "action_net" in key]
    assert not any(th.equal(before[key], after[key]) for key in trained)
    model.policy.requires_grad_(True)
    model.learn(64, reset_num_timesteps=False)
    moved = [key for key in encoders if not th.equal(parameters(model)[key], after[key])]
    assert bool(moved) is not without_gradient


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.SGD])
def test_parts_frozen_after_construction(cls, optimizer):
    kwargs = {"features_extractor_class": LinearExtractor, "optimizer_class": optimizer}
    parts = [["features_extractor"], ["value_net", "mlp_extractor.value_net", "vf_features_extractor"], [""]]
    for names in parts:
        model = make(cls, policy_kwargs=kwargs | {"share_features_extractor": False})
        for name in names:
            model.policy.get_submodule(name).requires_grad_(False)
        before = parameters(model)
        model.learn(128)
        for key, value in parameters(model).items():
            is_frozen = not model.policy.get_parameter(key).requires_grad
            assert th.equal(value, before[key]) or not is_frozen, key
        assert names == [""] or not all_equal(before, parameters(model))
