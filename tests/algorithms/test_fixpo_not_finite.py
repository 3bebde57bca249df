"""FixPO when everything goes wrong: steps far too large, in all action spaces. And torch's own settings are its own."""

import threading

import pytest
import torch as th
from support import ACTION_SPACES, DISTRIBUTIONS, ActionEnv, OwnDistributionPolicy, Recorder, update

from sb3_trl import FixPO

OPTIONS = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "kl_bound": 0.05, "seed": 0, "device": "cpu"}

pytestmark = pytest.mark.usefixtures("torch_keeps_its_settings")


def make(space="box", policy="MlpPolicy", **kwargs) -> FixPO:
    return FixPO(policy, ActionEnv(ACTION_SPACES[space]), **(OPTIONS | {"compile": False} | kwargs))


LEARNING_RATES = [3.0, 3e5, 3e12, 3e26]
CASES = [*DISTRIBUTIONS, *((space, {"policy": OwnDistributionPolicy} | kwargs) for space, kwargs in DISTRIBUTIONS[:-1])]


@pytest.mark.parametrize(
    ("space", "kwargs", "learning_rate"),
    [(*case, rate) for index, case in enumerate(CASES) for rate in LEARNING_RATES[index % 2 :: 2]],
)
def test_the_bound_holds_whatever_the_learning_rate(space, kwargs, learning_rate):
    recorder = Recorder()
    model = make(space, learning_rate=learning_rate, max_fixup_steps=4, max_grad_norm=None, **kwargs)
    model.learn(4 * OPTIONS["n_steps"], recorder)
    assert [log["trust_region/violation_fraction"] for log in recorder.logs] == [0.0] * 4
    assert all(0 <= log["fixpo/kl_max"] <= 0.05 for log in recorder.logs)
    assert recorder.logs[-1]["fixpo/rollbacks"] > 0
    assert all(p.isfinite().all() for p in model.policy.parameters())


def test_two_models_in_two_threads():
    """Nothing that one of them sets can outlive the other."""
    models = [make(space, learning_rate=3e12) for space in ("box", "discrete")]
    threads = [threading.Thread(target=model.learn, args=(128,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [model._n_updates for model in models] == [4, 4]


def test_an_update_that_fails(monkeypatch):
    model = make().learn(64)
    monkeypatch.setattr(model, "_fixup_phase", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        update(model)


def test_finite_parameters_of_which_no_distribution_can_be_made(monkeypatch):
    """A standard deviation of 0: the search back to the old policy passes many such."""
    model = make(policy=OwnDistributionPolicy).learn(64)

    @th.no_grad()
    def ruin(*_) -> bool:
        model.policy.log_std -= 1e6
        return True

    monkeypatch.setattr(model, "_primary_phase", ruin)
    log = update(model)
    assert 0 < log["fixpo/kl_max"] <= 0.05
    assert log["fixpo/rollbacks"] == model.n_epochs
