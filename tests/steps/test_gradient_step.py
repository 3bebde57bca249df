"""The compiled gradient step is the eager one, only faster."""

import copy
import warnings

import pytest
import torch as th
from support import further, parameters, small, vec_env

from sb3_trl import TRPL, FixPO
from sb3_trl.algorithms.losses import Weights
from sb3_trl.algorithms.trust_region import TrustRegion
from sb3_trl.policies.forward import ForwardPass
from sb3_trl.projections import Gaussian
from sb3_trl.rollouts.rollout import Rollout
from sb3_trl.steps.gradient_step import CompiledStep, EagerStep
from sb3_trl.table import table


def make_model(**kwargs) -> TRPL:
    return TRPL("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=16, seed=0, device="cpu", **kwargs)


def random_data(model: TRPL, n: int) -> tuple[Rollout, TrustRegion, Weights]:
    """A rollout around an old policy from which the network is about one trust region away."""
    observations = th.randn(n, 3)
    with th.no_grad():
        predicted = model.policy.gaussian(observations)
    old = Gaussian(predicted.mean + 0.2 * th.randn(n, 1), std=1.05 * predicted.std)
    actions = old.sample()
    rollout = Rollout(observations, actions, th.zeros(n), old.log_prob(actions), th.randn(n), th.randn(n))
    bounds = tuple(th.tensor(bound, dtype=th.float64) for bound in (0.03, 1e-3))
    return rollout, TrustRegion(model.trust_region_layer, old, bounds), model._weights()


def steps_of(model: TRPL, compiled: bool, policy) -> EagerStep:
    forward = ForwardPass(policy, "predicted")
    if compiled:
        return CompiledStep(forward, model._policy_loss, policy.optimizer, model.max_grad_norm, model.batch_size)
    return EagerStep(forward, model._policy_loss, policy.optimizer, model.max_grad_norm)


@pytest.mark.parametrize(
    "kwargs",
    [{"projection": "kl"}, pytest.param({"projection": "w2", "max_grad_norm": 0.1}, marks=pytest.mark.traced)],
)
def test_compiled_equals_eager(kwargs):
    """Over 100 steps, with odd last minibatches and learning rates that change, without compiling again."""
    model = make_model(**kwargs)
    policies = {True: model.policy, False: copy.deepcopy(model.policy)}
    steps = {compiled: steps_of(model, compiled, policy) for compiled, policy in policies.items()}
    data = table(random_data(model, 70))
    n_steps = 0
    th._dynamo.utils.counters.clear()
    while n_steps < 100:
        for policy in policies.values():
            policy.optimizer.param_groups[0]["lr"] = 1e-3 / (1 + n_steps)
        epochs = {}
        for compiled, step in steps.items():
            th.manual_seed(n_steps)
            epochs[compiled] = step.epoch(data, 16)
        for own, expected in zip(epochs[True], epochs[False], strict=True):
            assert {key: value.item() for key, value in own.items()} == pytest.approx(
                {key: value.item() for key, value in expected.items()}, rel=1e-3, abs=1e-5
            )
        n_steps += len(epochs[True])
        for step in steps.values():
            step.finish()
    assert th._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert epochs[True][-1]["trust_region_loss"] > 0, "the trust region was never active: nothing was tested"
    for p, q in zip(policies[True].parameters(), policies[False].parameters(), strict=True):
        assert th.allclose(p, q, rtol=1e-4, atol=1e-6)
    states = [policies[compiled].optimizer.state_dict()["state"] for compiled in (True, False)]
    for index, state in states[1].items():
        assert states[0][index]["step"] == state["step"] == n_steps
        assert th.allclose(states[0][index]["exp_avg"], state["exp_avg"], rtol=1e-2, atol=1e-5)


def test_a_failed_compilation_warns_once_and_trains_on(monkeypatch):
    model = make_model()
    reference = copy.deepcopy(model.policy)
    step = steps_of(model, True, model.policy)

    def broken(*_):
        raise RuntimeError("no compiler on this machine")

    monkeypatch.setattr(th, "compile", lambda *arguments, **options: broken)
    data = table(random_data(model, 32))
    first, second = th.arange(32).split(16)
    with pytest.warns(UserWarning, match="no compiler on this machine.*without compilation"):
        step.take(data, first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step.take(data, second)
    eager = steps_of(model, False, reference)
    for index in (first, second):
        eager(data, data.at(index).rows)
    for p, q in zip(model.policy.parameters(), reference.parameters(), strict=True):
        assert th.equal(p, q)


@pytest.mark.traced
def test_an_interrupted_update_leaves_adam_with_its_steps(monkeypatch):
    """Ctrl-C in the middle of an update: the model that is saved then must go on where it was."""
    model, take = make_model(compile=True, n_critic_epochs=3), CompiledStep.take
    steps = []

    def interrupted_after_the_seventh(step, data, index):
        if len(steps) == 7:
            raise KeyboardInterrupt
        steps.append(take(step, data, index))
        return steps[-1]

    monkeypatch.setattr(CompiledStep, "take", interrupted_after_the_seventh)
    with pytest.raises(KeyboardInterrupt):
        model.learn(64)
    states = model.policy.critic_optimizer.state_dict()["state"].values()
    assert [float(state["step"]) for state in states] == [7.0] * len(states)


@pytest.mark.traced
@th._dynamo.config.patch(recompile_limit=1)
def test_many_models_compile_in_one_process():
    """torch compiles one piece of code no more than eight times; here, once."""
    for _ in range(2):
        model = make_model()
        step = steps_of(model, True, model.policy)
        data = table(random_data(model, 16))
        step.take(data, th.arange(16))
        assert step.is_compiled


@pytest.mark.traced
def test_training_compiled_saves_and_loads(tmp_path):
    """A model trained with compilation continues without it, from the same moments."""
    model = make_model(compile=True, n_epochs=2, n_critic_epochs=1).learn(128)
    model.save(tmp_path / "model")
    loaded = TRPL.load(tmp_path / "model", env=model.env, device="cpu", compile=False)
    for name in ("optimizer", "critic_optimizer"):
        saved, restored = (getattr(m.policy, name).state_dict()["state"] for m in (model, loaded))
        for index, state in saved.items():
            assert state["step"] > 0
            assert all(th.equal(state[key], restored[index][key]) for key in state)
    loaded.learn(64, reset_num_timesteps=False)


@pytest.mark.traced
@pytest.mark.parametrize("env", ["Pendulum-v1", *further("CartPole-v1")])
def test_fixpo_compiled_is_fixpo(env):
    """The same networks and the same β, with odd last minibatches, clipped values and an entropy bonus."""
    options = {"n_steps": 200, "batch_size": 64, "n_epochs": 5, "seed": 0, "device": "cpu", "max_grad_norm": 0.5}
    options |= {"clip_range_vf": "lin_0.2", "ent_coef": 0.01, "learning_rate": "lin_3e-3", "kl_bound": 0.1}
    th._dynamo.utils.counters.clear()
    compiled, eager = (FixPO("MlpPolicy", env, compile=c, **options).learn(800) for c in (True, False))
    assert th._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "the step, and the divergence of the fixup phase"
    assert not any(step._is_broken for step in compiled._compiled_steps.values())
    assert th.allclose(compiled.dual.state, eager.dual.state, rtol=1e-3)
    assert compiled.dual.value != 1.0
    for p, q in zip(compiled.policy.parameters(), eager.policy.parameters(), strict=True):
        assert th.allclose(p, q, rtol=1e-2, atol=1e-4)


@pytest.mark.traced
def test_what_has_no_gradient_stays():
    """Regression leaves a standard deviation that was set to its projected value alone, whatever Adam remembers."""
    options = {"n_epochs": 2, "n_critic_epochs": 1, "n_regression_epochs": 1, "learning_rate": 1e-3}
    compiled, eager = (make_model(compile=c, **options).learn(128) for c in (True, False))
    assert compiled._compiled_steps["regression"].is_compiled
    assert th.allclose(compiled.policy.scale_net.raw, eager.policy.scale_net.raw, rtol=1e-4, atol=1e-6)
    steps = [model.policy.optimizer.state[model.policy.scale_net.raw]["step"].item() for model in (compiled, eager)]
    assert steps[0] == steps[1] == 16


@pytest.mark.traced
@pytest.mark.parametrize("algorithm", [TRPL, FixPO])
def test_nothing_of_the_rollout_outlives_the_update(algorithm):
    """Within it, code is checked once; FixPO takes its epochs one by one."""
    model = algorithm(
        "MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=16, n_epochs=3, seed=0, device="cpu", compile=True
    )
    checked = []
    model.learn(64)
    for step in model._compiled_steps.values():
        assert step.is_compiled
        (variant,) = step._variants.values()
        function, check = variant.function, variant.function._checked
        function._checked = lambda *arguments, check=check: (checked.append(1), check(*arguments))[1]
    model.learn(2 * 64, reset_num_timesteps=False)
    assert len(checked) == 2 * len(model._compiled_steps), "once for each loss and update"
    for step in model._compiled_steps.values():
        assert step._data is None
        assert step._fixed is None
        assert all(variant.function._arguments == () for variant in step._variants.values())


@pytest.mark.traced
def test_a_compilation_that_fails_in_the_middle_goes_on_without(monkeypatch):
    """With one warning, and the parameters that steps without compilation give."""
    options = {"n_steps": 32, "batch_size": 16, "n_epochs": 2}
    models = [small(TRPL, vec_env(2), compile=compile, **options).learn(64) for compile in (False, True)]
    for step in models[1]._compiled_steps.values():
        for variant in step._variants.values():

            def fail(*_):
                raise RuntimeError("no more compilation")

            variant.function._checked = fail
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for model in models:
            th.manual_seed(1)
            model.learn(64, reset_num_timesteps=False).learn(64, reset_num_timesteps=False)
    messages = [str(w.message) for w in caught if "could not be compiled" in str(w.message)]
    assert len(messages) == 2, "one for each kind of step"
    assert "no more compilation" in messages[0]
    for name, expected in parameters(models[0]).items():
        assert th.allclose(parameters(models[1])[name], expected, rtol=1e-3, atol=1e-5), name
