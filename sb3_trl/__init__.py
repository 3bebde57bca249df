"""Trust-region reinforcement learning for Stable-Baselines3.

``sb3_trl.projections`` is pure PyTorch; everything else is loaded when it is first asked for, so that the
projections can be used where Stable-Baselines3 is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sb3_trl.version import __version__

if TYPE_CHECKING:
    from sb3_trl.callbacks import TrustRegionCallback
    from sb3_trl.distributions import ProjectedGaussianDistribution
    from sb3_trl.fixpo import FixPO
    from sb3_trl.lean_ppo import LeanPPO
    from sb3_trl.lean_trpo import LeanTRPO
    from sb3_trl.papi import PAPI
    from sb3_trl.policies import TRPLPolicy
    from sb3_trl.schedules import StateBound
    from sb3_trl.trpl import TRPL

_MODULES = {
    "TRPL": "trpl",
    "FixPO": "fixpo",
    "LeanPPO": "lean_ppo",
    "LeanTRPO": "lean_trpo",
    "PAPI": "papi",
    "TRPLPolicy": "policies",
    "ProjectedGaussianDistribution": "distributions",
    "StateBound": "schedules",
    "TrustRegionCallback": "callbacks",
}

__all__ = [
    "PAPI",
    "TRPL",
    "FixPO",
    "LeanPPO",
    "LeanTRPO",
    "ProjectedGaussianDistribution",
    "StateBound",
    "TRPLPolicy",
    "TrustRegionCallback",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'sb3_trl' has no attribute {name!r}")
    return getattr(import_module(f"sb3_trl.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
