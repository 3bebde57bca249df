"""Actions, and what is stored of them, are those of the policy as it is, however a callback changes it."""

import numpy as np
import pytest
from changes import CHANGES, Acting, make
from support import ACTION_SPACES, ActionEnv, vec_env

from sb3_trl import PAPI, TRPL, FixPO, LeanPPO, LeanTRPO
from sb3_trl.policies.actor_critic import SingleOptimizerPolicy

POLICIES = [
    (TRPL, "box", {}),
    (TRPL, "box", {"policy_kwargs": {"contextual_std": True}}),
    (TRPL, "box", {"policy_kwargs": {"covariance": "full"}}),
    (FixPO, "box", {}),
    (FixPO, "discrete", {}),
    (PAPI, "box", {}),
    (LeanPPO, "box", {}),
    (LeanPPO, "multi_discrete", {}),
    (LeanPPO, "multi_binary", {}),
    (LeanPPO, "box", {"policy": SingleOptimizerPolicy, "policy_kwargs": {"contextual_std": True}}),
    (LeanTRPO, "box", {}),
]


@pytest.mark.parametrize("when", ["rollout", "step"])
@pytest.mark.parametrize(("cls", "space", "kwargs"), POLICIES)
def test_actions_and_what_is_stored_are_those_of_the_policy_as_it_is(cls, space, kwargs, when):
    """However a callback changes it; LeanTRPO and all others, at the start of a rollout and in the middle."""
    for change in CHANGES:
        model = make(cls, vec_env(2, ActionEnv, action_space=ACTION_SPACES[space]), **kwargs)
        acting = Acting(lambda model, n, change=change: n % 5 == 3 and change(model, n), when)
        if when == "rollout":
            acting.function = change
        _, callback = model._setup_learn(10_000, acting)
        callback.on_training_start({}, {})
        for _ in range(2):
            assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        if acting.differences:
            assert np.square(np.stack(acting.differences)).mean() == pytest.approx(1, abs=0.4), change
