"""What callbacks find in ``locals`` while a rollout is collected."""

import copy

import numpy as np
import pytest
import torch as th
from changes import make
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from support import ACTION_SPACES, ActionEnv

from sb3_trl import TRPL, FixPO, LeanPPO, LeanTRPO


class KeepsLocals(BaseCallback):
    """Keeps what SB3's callbacks find, at every step and at the end of a rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.ends = [], []

    def _look(self) -> dict:
        return {key: copy.deepcopy(self.locals[key]) for key in ("obs_tensor", "values", "log_probs")}

    def _on_step(self) -> bool:
        assert "values" in self.locals
        assert self.locals.get("values") is not None
        assert "nothing" not in self.locals
        assert self.locals.get("nothing", 3) == 3
        self.steps.append(self._look())
        return True

    def _on_rollout_end(self) -> None:
        self.ends.append(self._look())


@pytest.mark.parametrize("cls", [TRPL, FixPO, LeanPPO, LeanTRPO])
def test_callbacks_find_values_and_log_probabilities(cls):
    """At every step, and at the end of a rollout those that SB3 leaves: the last step's, but the values after it."""
    model, keep = make(cls, ActionEnv(ACTION_SPACES["discrete" if cls is LeanPPO else "box"])), KeepsLocals()
    _, callback = model._setup_learn(10_000, CallbackList([keep]))
    callback.on_training_start({}, {})
    for _ in range(2):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        buffer, steps, end = model.rollout_buffer, keep.steps[-32:], keep.ends[-1]
        values, log_probs = (th.stack([step[key].flatten() for step in steps]) for key in ("values", "log_probs"))
        np.testing.assert_allclose(values, buffer.values, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(log_probs, buffer.log_probs, rtol=1e-5, atol=1e-6)
        observations = th.stack([step["obs_tensor"] for step in steps])
        assert np.array_equal(observations, buffer.observations)
        last = model.policy.obs_to_tensor(model._last_obs)[0]
        assert end["values"].shape == (1, 1)
        assert th.equal(end["values"], model.policy.predict_values(last).detach())
        assert th.allclose(end["log_probs"], log_probs[-1])
        assert th.equal(end["obs_tensor"], observations[-1])
