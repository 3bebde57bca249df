"""Ctrl-C in the middle of a ``SeedBatch``: nothing goes on, nothing is left changed, and training can go on."""

import gc
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from support import PointEnv, all_equal, parameters

import sb3_trl
from sb3_trl import PAPI, TRPL, FixPO, LeanPPO
from sb3_trl.study import SeedBatch, lockstep

OPTIONS = {"n_steps": 8, "batch_size": 8, "n_epochs": 2, "device": "cpu"}
PACKAGE = str(Path(sb3_trl.__file__).parent)


class Uncompiled:
    """Calls what would be compiled."""

    def __init__(self, function, cpu_options=None) -> None:
        self.function = function

    def __call__(self, varying, fixed):
        return self.function(varying, fixed)

    def forget(self) -> None:
        pass


class InterruptAt:
    """Raises at the n-th call of a function of the package, and counts the calls."""

    def __init__(self, n: int | None, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.n, self.error, self.calls, self.where = n, error, 0, ""

    def __call__(self, frame, event, arg) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE) or code.co_name == "<genexpr>":
            return
        self.calls += 1
        if self.calls == self.n:
            self.where = f"{Path(code.co_filename).name}:{code.co_name}"
            raise self.error

    def __enter__(self) -> "InterruptAt":
        sys.settrace(self)
        return self

    def __exit__(self, *_) -> None:
        sys.settrace(None)


def make_batch(algorithm=TRPL, compile: bool = True, **kwargs) -> SeedBatch:
    def env(seed: int):
        return make_vec_env(lambda: PointEnv(length=5), 2, seed=seed)

    return SeedBatch(algorithm, "MlpPolicy", env, [3, 4], compile, **(OPTIONS | kwargs))


def assert_nothing_goes_on(batch: SeedBatch, is_left_as: Callable[[], bool]) -> None:
    """After ``learn`` has ended."""
    now = [parameters(model) for model in batch.models]
    gc.collect()
    assert threading.active_count() == 1
    assert is_left_as()
    for model, expected in zip(batch.models, now, strict=True):
        assert all_equal(parameters(model), expected)
        assert not {"_lockstep", "_take_steps", "_compiles_evaluations"} & {*vars(model)}
        assert "step_wait" not in vars(model.env.unwrapped)


def torch_as_it_is() -> Callable[[], bool]:
    """Return whether what torch keeps for the whole process is as it was at the time of this call."""
    random_state, validates = th.get_rng_state(), th.distributions.Distribution._validate_args

    def is_left_as() -> bool:
        return (
            th.equal(th.get_rng_state(), random_state)
            and th.distributions.Distribution._validate_args == validates
            and th.is_grad_enabled()
            and not th.is_inference_mode_enabled()
        )

    return is_left_as


STRIDE = int(os.environ.get("STRIDE", "0"))


@pytest.mark.parametrize(
    ("algorithm", "compile", "kwargs"),
    [
        (TRPL, True, {"hard": True, "n_regression_epochs": 1}),
        (TRPL, False, {}),
        (PAPI, True, {}),
        (FixPO, True, {"kl_bound": 1e-3}),
        (FixPO, False, {"kl_bound": 1e-3}),
        (LeanPPO, True, {}),
    ],
)
def test_an_interrupt_anywhere(algorithm, compile, kwargs, monkeypatch, tmp_path):
    """At calls spread over all those of a training: in rollouts, losses, measurements, between requests, …."""
    monkeypatch.setattr(lockstep, "Compiled", Uncompiled)  # whose functions would not be called again
    monkeypatch.setattr("sb3_trl.on_policy.TrustRegionAlgorithm._compiled_evaluation", lambda *_: None)
    with InterruptAt(None) as whole:
        make_batch(algorithm, compile, **kwargs).learn(16)
    with InterruptAt(None) as made:
        make_batch(algorithm, compile, **kwargs)
    n_calls = whole.calls - made.calls
    batch = make_batch(algorithm, compile, **kwargs)
    places = set()
    for n in range(1, n_calls, STRIDE or n_calls // 12):
        is_left_as = torch_as_it_is()
        interrupt = InterruptAt(n)
        try:
            with interrupt:
                batch.learn(16)
        except KeyboardInterrupt:
            places.add(interrupt.where)
        else:
            assert interrupt.calls < n, (interrupt.where, n)
        assert_nothing_goes_on(batch, is_left_as)
    print(n_calls, len(places), sorted(places))
    batch.models[-1].save(tmp_path / "model")
    before = [parameters(model) for model in batch.models]
    batch.learn(16)
    for model, old in zip(batch.models, before, strict=True):
        assert model.num_timesteps == 16
        assert not all_equal(parameters(model), old)
