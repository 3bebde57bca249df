"""What users change while several seeds train at once."""

import pytest
import torch as th
from changes import CHANGES, Acting, Calls, make
from support import further, parameters, vec_env

from sb3_trl import TRPL, FixPO
from sb3_trl.steps.compilation import Compiled
from sb3_trl.study import SeedBatch


def batch_of(cls, seeds=(0, 1), compile=False, **kwargs) -> SeedBatch:
    options = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "device": "cpu"} | kwargs
    options["policy_kwargs"] = {"net_arch": [8]} | options.get("policy_kwargs", {})
    return SeedBatch(cls, "MlpPolicy", lambda seed: vec_env(2), seeds, compile, **options)


@pytest.mark.parametrize("when", ["rollout", "step"])
@pytest.mark.parametrize(("cls", "contextual"), [(TRPL, False), (TRPL, True), (FixPO, None)])
def test_seeds_act_with_their_policies_as_they_are(cls, contextual, when):
    """Each with its own, which its own callback changes at its own time."""
    kwargs = {} if contextual is None else {"policy_kwargs": {"contextual_std": contextual}}
    for change in CHANGES:

        def callback(model, change=change) -> Acting:
            return Acting(lambda m, n: (when == "rollout" or n % (3 + model.seed) == 2) and change(m, n), when)

        batch = batch_of(cls, **kwargs)
        for model in batch.models:
            model.train = lambda: None
        batch.learn(128, callback)


@pytest.mark.traced
@pytest.mark.parametrize(("cls", "frozen"), [(TRPL, {1: 1}), *further((TRPL, {0: 1, 1: 2}), (FixPO, {0: 1, 1: 2}))])
def test_seeds_freeze_and_change_scalars_each_for_itself(cls, frozen):
    """Compiled as each alone without: frozen in different updates, clipped and weighted by different numbers."""

    def callback(model) -> Calls:
        def change(m, n: int) -> None:
            m.policy.mlp_extractor.policy_net.requires_grad_(n != frozen.get(model.seed))
            m.max_grad_norm, m.ent_coef, m.vf_coef = 0.1 * (n + 1), 1e-3 * (n + 1 + model.seed), 0.5 + 0.1 * n

        return Calls(change)

    kwargs = {"ent_coef": 1e-4, "max_grad_norm": 0.5, "learning_rate": 1e-3}
    kwargs |= {"n_critic_epochs": 0} if cls is TRPL else {}
    batch = batch_of(cls, (0, 1), compile=True, **kwargs).learn(64 * 3, callback)
    assert len(batch._steps) == (3 if cls is TRPL else 2), "TRPL's critic takes no steps"
    for model in batch.models:
        single = make(cls, vec_env(2), **(kwargs | {"seed": model.seed})).learn(64 * 3, callback(model))
        for name, expected in parameters(single).items():
            assert th.allclose(parameters(model)[name], expected, rtol=1e-3, atol=1e-4), name


@pytest.mark.traced
def test_seeds_go_on_without_a_compilation_that_fails(monkeypatch):
    """In the middle of an update: no step is lost, none is taken twice."""
    calls = []
    original = Compiled.__call__

    def fail_at_the_third(self, varying, fixed):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no more compilation")
        return original(self, varying, fixed)

    monkeypatch.setattr(Compiled, "__call__", fail_at_the_third)
    batch = batch_of(FixPO, (0, 1), compile=True, fixup="off")
    with pytest.warns(UserWarning, match="no more compilation"):
        batch.learn(64)
    assert len(calls) == 3
    for model in batch.models:
        single = make(FixPO, vec_env(2), seed=model.seed, fixup="off").learn(64)
        for name, expected in parameters(single).items():
            assert th.allclose(parameters(model)[name], expected, rtol=1e-3, atol=1e-4), name
        steps = [state["step"].item() for state in model.policy.optimizer.state.values()]
        assert steps == [8] * len(steps)
