"""Scalars of the algorithm, and optimisers, that change while training runs."""

import pytest
import torch as th
from changes import Calls, make
from support import ALGORITHMS, SHARED, LinearExtractor, all_equal, further, parameters

from sb3_trl import PAPI, TRPL, FixPO, LeanPPO


def change_scalars(model, n: int) -> None:
    for name, value in (
        ("ent_coef", 1e-3 * (n + 1)),
        ("vf_coef", 0.5 + 0.01 * n),
        ("clip_range_vf", 0.2 + 0.01 * n),
        ("clip_range", 0.2 + 0.01 * n),
        ("trust_region_coef", 8.0 + n),
        ("kl_bound", 0.1 + 0.01 * n),
        ("kl_target_coef", 2.0 + 0.01 * n),
        ("beta_learning_rate", 0.01 * (n + 1)),
        ("max_grad_norm", 0.5 + 0.1 * n),
        ("mean_bound", 0.03 + 0.001 * n),
        ("cov_bound", 0.001 + 0.0001 * n),
        ("critic_learning_rate", 1e-3 / (n + 1)),
    ):
        if hasattr(model, name):
            setattr(model, name, value)


@pytest.mark.traced
@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (TRPL, {"ent_coef": 1e-4, "max_grad_norm": 1.0, "policy_kwargs": SHARED}),
        (FixPO, {"ent_coef": 1e-4, "clip_range_vf": 0.2}),
        *further((LeanPPO, {"clip_range_vf": 0.2})),
    ],
)
def test_scalars_changed_at_every_update_are_inputs(cls, kwargs):
    """For ten updates, without compiling again, and with the effect that they have in steps that are not compiled."""
    models = {}
    for compile in (False, True):
        models[compile] = make(cls, compile=compile, n_epochs=1, **kwargs)
        models[compile].learn(64)
        th._dynamo.utils.counters.clear()
        models[compile].learn(64 * 10, Calls(change_scalars), reset_num_timesteps=False)
        assert th._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    steps = models[True]._compiled_steps.values()
    assert steps
    assert not any(step._is_broken for step in steps)
    for name, expected in parameters(models[False]).items():
        assert th.allclose(parameters(models[True])[name], expected, rtol=1e-2, atol=1e-3), name


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_scalars_have_an_effect_when_they_are_changed(cls):
    """Every one of them, in the update after: what is trained with it differs from what is trained without."""
    names = [name for name in vars(make(cls)) if name in SCALARS and hasattr(make(cls), name)]
    assert len(names) > 3

    def trained(name: str | None) -> dict[str, th.Tensor]:
        kwargs = {"ent_coef": 0.1, "max_grad_norm": 0.1, "learning_rate": 3e-2}
        if cls in (FixPO, LeanPPO):
            kwargs["clip_range_vf"] = 0.2
        if cls is TRPL:
            kwargs["policy_kwargs"] = {"features_extractor_class": LinearExtractor, "share_features_extractor": True}
        model = make(cls, **kwargs)

        def change(model, n: int) -> None:
            if n == 2 and name is not None:
                setattr(model, name, SCALARS[name])

        model.learn(64 * 4, Calls(change))
        state = {} if cls is not FixPO else {"beta": model.dual.value.clone()}
        return parameters(model) | state

    expected = trained(None)
    for name in names:
        # Without an effect by themselves, or in a Box.
        if (cls, name) not in ((TRPL, "critic_learning_rate"), (TRPL, "kl_bound"), (PAPI, "vf_coef")):
            assert not all_equal(expected, trained(name)), name


SCALARS = {
    "ent_coef": 0.5,
    "vf_coef": 2.0,
    "clip_range": 0.01,
    "clip_range_vf": 0.01,
    "trust_region_coef": 100.0,
    "kl_bound": 1e-3,
    "kl_target_coef": 30.0,
    "beta_learning_rate": 1.0,
    "max_grad_norm": 1e-4,
    "mean_bound": 1e-5,
    "cov_bound": 1e-7,
    "critic_learning_rate": 1e-6,
}


@pytest.mark.traced
def test_another_optimizer_is_used_from_the_next_update_on():
    """A callback may start with new moments, or another class."""

    def change(model, n: int) -> None:
        policy = model.policy
        if n == 1:
            policy.optimizer = th.optim.Adam(policy.parameters(), lr=1e-3, eps=1e-5)
        if n == 2:
            policy.optimizer = th.optim.SGD(policy.parameters(), lr=1e-3)

    models = [make(LeanPPO, compile=compile).learn(64 * 3, Calls(change)) for compile in (False, True)]
    for name, expected in parameters(models[0]).items():
        assert th.allclose(parameters(models[1])[name], expected, rtol=1e-3, atol=1e-5), name
