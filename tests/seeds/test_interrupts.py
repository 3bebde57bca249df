"""Ctrl-C in the middle of a ``SeedBatch``: nothing goes on, nothing is left changed, and training can go on."""

import copy
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from support import ROOT, PointEnv, Uncompiled, all_equal, parameters

import sb3_trl
from sb3_trl import PAPI, TRPL, FixPO, LeanPPO, SeedBatch
from sb3_trl.seeds import lockstep

OPTIONS = {"n_steps": 8, "batch_size": 8, "n_epochs": 2, "device": "cpu"}
PACKAGE = str(Path(sb3_trl.__file__).parent)


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
    assert is_left_as()
    for model, expected in zip(batch.models, now, strict=True):
        assert all_equal(parameters(model), expected)
        assert not {"_lockstep", "_take_steps", "_compiles_evaluations"} & {*vars(model)}
        assert "step_wait" not in vars(model.env.unwrapped)


def process_as_it_is() -> Callable[[], bool]:
    """Return whether threads, and what torch keeps for all of them, are as they were at the time of this call."""
    threads, random_state = threading.enumerate(), th.get_rng_state()
    validates = th.distributions.Distribution._validate_args

    def is_left_as() -> bool:
        return (
            {*threading.enumerate()} <= {*threads}
            and th.equal(th.get_rng_state(), random_state)
            and th.distributions.Distribution._validate_args == validates
            and th.is_grad_enabled()
            and not th.is_inference_mode_enabled()
        )

    return is_left_as


@pytest.fixture
def collects_its_own():
    """``gc.collect`` looks at what a test has made alone, not at all that there is in a process of many tests."""
    gc.collect()
    gc.freeze()


#: Calls between interrupts; by default a dozen interrupts in all.
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
@pytest.mark.usefixtures("collects_its_own")
def test_an_interrupt_anywhere(algorithm, compile, kwargs, monkeypatch, tmp_path):
    """At calls spread over all those of a training: in rollouts, losses, measurements, between requests, …."""
    monkeypatch.setattr(lockstep, "Compiled", Uncompiled)  # whose functions would not be called again
    monkeypatch.setattr("sb3_trl.algorithms.base.TrustRegionAlgorithm._compiled_evaluation", lambda *_: None)
    with InterruptAt(None) as whole:
        make_batch(algorithm, compile, **kwargs).learn(16)
    with InterruptAt(None) as made:
        make_batch(algorithm, compile, **kwargs)
    n_calls = whole.calls - made.calls
    batch = make_batch(algorithm, compile, **kwargs)
    for n in range(1, n_calls, STRIDE or n_calls // 12):
        is_left_as = process_as_it_is()
        interrupt = InterruptAt(n)
        with suppress(KeyboardInterrupt), interrupt:
            batch.learn(16)
            assert interrupt.calls < n, interrupt.where
        assert_nothing_goes_on(batch, is_left_as)
    batch.models[-1].save(tmp_path / "model")
    before = [parameters(model) for model in batch.models]
    batch.learn(16)
    for model, old in zip(batch.models, before, strict=True):
        assert model.num_timesteps == 16
        assert not all_equal(parameters(model), old)


def test_sigint_in_a_process(tmp_path):
    """Ctrl-C at any time, as the user's."""
    script = tmp_path / "learn.py"
    script.write_text(
        "import gc, os, signal, sys, threading\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from seeds.test_interrupts import assert_nothing_goes_on, make_batch, process_as_it_is\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background does not have\n"
        "signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))\n"
        "batch = make_batch(compile=False)\n"
        "batch.learn(16)\n"
        "gc.freeze()  # or every search for garbage looks at all modules\n"
        "for n in range(10):\n"
        "    is_left_as = process_as_it_is()\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.01 + 0.007 * n)\n"
        "    try:\n"
        "        batch.learn(10**9)\n"
        "    except KeyboardInterrupt:\n"
        "        assert_nothing_goes_on(batch, is_left_as)\n"
        "batch.learn(16)\n"
        "print('learned on')\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "learned on\n", done.stderr


def test_a_subclass_with_a_train_of_its_own():
    """It is called, its gradient mode is its own, and an error in it ends the others through their ``finally``."""
    events = []

    class Logging(TRPL):
        def train(self):
            events.append(("begins", self.seed))
            try:
                with th.set_grad_enabled(self.seed == 3 or th.is_grad_enabled()):
                    super().train()
                if self.seed == 4 and len(events) > 4:
                    raise RuntimeError("one update failed")
                copy.deepcopy(self)
            finally:
                events.append(("ends", self.seed, th.is_grad_enabled(), threading.current_thread()))

    batch, is_left_as = make_batch(Logging, compile=False), process_as_it_is()
    with pytest.raises(RuntimeError, match="one update failed"):
        batch.learn(32)
    begin = [("begins", 3), ("begins", 4)]
    own = threading.current_thread()
    assert events == 2 * [*begin, ("ends", 3, True, own), ("ends", 4, True, own)]
    assert_nothing_goes_on(batch, is_left_as)
