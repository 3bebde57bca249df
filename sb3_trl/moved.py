"""Where definitions stood in version 0.1.0, for models and studies that were saved with it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["old_modules", "with_new_names"]

#: Modules that are not there any more, and where to look for what they defined; all below ``sb3_trl``.
_MODULES = {
    "action_parameters": ("policies.action_parameters", "policies.families", "policies.parameters"),
    "callbacks": ("monitoring.callbacks",),
    "compilation": ("steps.compilation", "random_state"),
    "dashboard": ("monitoring.dashboard",),
    "direct": ("policies.direct",),
    "distributions": ("policies.distributions",),
    "enforcement": ("algorithms.enforcement",),
    "evaluation": ("steps.evaluation",),
    "fixpo": ("algorithms.fixpo", "algorithms.losses"),
    "flat_adam": ("steps.flat_adam",),
    "fused_adam": ("steps.fused_adam",),
    "gaussian_algorithm": ("algorithms.projecting",),
    "lean_actor": ("rollouts.actor",),
    "lean_env": ("rollouts.stepping",),
    "lean_locals": ("rollouts.locals",),
    "lean_normalize": ("rollouts.normalization",),
    "lean_ppo": ("algorithms.lean_ppo", "algorithms.losses"),
    "lean_rollout": ("rollouts.collection", "rollouts.values"),
    "lean_trpo": ("algorithms.lean_trpo",),
    "losses": ("algorithms.losses",),
    "on_policy": ("algorithms.base", "steps.running_means"),
    "papi": ("algorithms.papi",),
    "policy_watch": ("rollouts.policy_watch",),
    "rollout": ("rollouts.rollout", "table", "monitoring.finite"),
    "study.seed_batch": ("seeds.batch",),
    "trpl": ("algorithms.trpl", "algorithms.losses"),
    "trust_region": ("algorithms.trust_region", "projections.named"),
}
#: What has another name there.
_RENAMED = {"GaussianAlgorithm": "ProjectingAlgorithm"}
#: What hyperparameter files named.
_NAMES = {"sb3_trl.callbacks.TrustRegionCallback": "sb3_trl.TrustRegionCallback"}

_one_at_a_time = threading.RLock()


class _OldModule(ModuleType):
    """Looks for its names where they are now."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            for place in _MODULES[self.__name__.removeprefix("sb3_trl.")]:
                module = import_module(f"sb3_trl.{place}")
                if hasattr(module, _RENAMED.get(name, name)):
                    return getattr(module, _RENAMED.get(name, name))
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


@contextmanager
def old_modules() -> Iterator[None]:
    """Let pickles inside the block find what they know by the path of then; afterwards nothing is left of it."""
    with _one_at_a_time:
        names = [f"sb3_trl.{name}" for name in _MODULES]
        old = {name: _OldModule(name) for name in names if name not in sys.modules}
        sys.modules.update(old)
        try:
            yield
        finally:
            for name in old:
                sys.modules.pop(name, None)


def with_new_names(text: str) -> str:
    """Return settings, as a file has them, with the names of now."""
    for old, new in _NAMES.items():
        text = text.replace(old, new)
    return text
