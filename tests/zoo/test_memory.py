"""The RL Zoo's commands carry what a policy with a memory remembers."""

import numpy as np
import pytest

pytest.importorskip("rl_zoo3")

import itertools

from support import call

from sb3_trl import LeanRecurrentPPO, RecurrentFixPO, RecurrentTRPL

ENV = "sb3_trl/PendulumNoVel-v1"
ALGORITHMS = {
    "recurrent_trpl": (RecurrentTRPL, "-params n_critic_epochs:1"),
    "recurrent_fixpo": (RecurrentFixPO, "-params"),
    "lean_recurrent_ppo": (LeanRecurrentPPO, "--conf-file ppo_lstm_memory.yml -params"),
}


@pytest.fixture
def asked(request, monkeypatch):
    """What every ``predict`` of an algorithm was given, and the state that it returned."""
    cls, calls = ALGORITHMS[request.getfixturevalue("algo")][0], []
    predict = cls.predict

    def watched(self, observation, state=None, episode_start=None, deterministic=False):
        actions, after = predict(self, observation, state, episode_start, deterministic)
        calls.append((state, np.copy(episode_start), after))
        return actions, after

    monkeypatch.setattr(cls, "predict", watched)
    return calls


def assert_remembered(asked: list[tuple]) -> None:
    """The first step has no state, every other one that of the step before; episodes begin where they do."""
    assert asked[0][0] is None
    assert all(later[0] is earlier[2] for earlier, later in itertools.pairwise(asked))
    assert all(np.abs(after[0]).max() > 0 for _, _, after in asked), "there is something to remember"
    assert [step for step, (_, start, _) in enumerate(asked) if start.all()] == list(range(0, len(asked), 200))


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_agents_remember(tmp_path, monkeypatch, asked, algo):
    monkeypatch.chdir(tmp_path)
    small = f"{ALGORITHMS[algo][1]} n_envs:2 n_steps:100 batch_size:100 n_epochs:1"
    call(f"train --algo {algo} --env {ENV} -n 200 --device cpu --eval-freq -1 {small}")
    assert not asked
    call(f"enjoy --algo {algo} --env {ENV} -f logs -n 250 --no-render")
    assert len(asked) == 250
    assert_remembered(asked)
    asked.clear()
    call(f"record-video --algo {algo} --env {ENV} -f logs -n 20")
    assert len(asked) >= 20
    assert_remembered(asked)
