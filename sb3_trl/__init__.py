"""Trust-region reinforcement learning for Stable-Baselines3.

``sb3_trl.projections`` is pure PyTorch; everything else is loaded when it is first asked for, so that the
projections can be used where Stable-Baselines3 is not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sb3_trl.version import __version__

if TYPE_CHECKING:
    from sb3_trl.algorithms.fixpo import FixPO
    from sb3_trl.algorithms.lean_ppo import LeanPPO
    from sb3_trl.algorithms.lean_trpo import LeanTRPO
    from sb3_trl.algorithms.papi import PAPI
    from sb3_trl.algorithms.recurrent.fixpo import RecurrentFixPO
    from sb3_trl.algorithms.recurrent.lean_ppo import LeanRecurrentPPO
    from sb3_trl.algorithms.recurrent.trpl import RecurrentTRPL
    from sb3_trl.algorithms.trpl import TRPL
    from sb3_trl.deployment.export import export
    from sb3_trl.deployment.exported import ExportedPolicy
    from sb3_trl.monitoring.callbacks import TrustRegionCallback
    from sb3_trl.policies import ProjectedGaussianDistribution, TRPLPolicy
    from sb3_trl.schedules import StateBound
    from sb3_trl.seeds.batch import SeedBatch

_MODULES = {
    "TRPL": "algorithms.trpl",
    "FixPO": "algorithms.fixpo",
    "LeanPPO": "algorithms.lean_ppo",
    "LeanTRPO": "algorithms.lean_trpo",
    "PAPI": "algorithms.papi",
    "RecurrentFixPO": "algorithms.recurrent.fixpo",
    "RecurrentTRPL": "algorithms.recurrent.trpl",
    "LeanRecurrentPPO": "algorithms.recurrent.lean_ppo",
    "TRPLPolicy": "policies",
    "ProjectedGaussianDistribution": "policies",
    "SeedBatch": "seeds.batch",
    "StateBound": "schedules",
    "TrustRegionCallback": "monitoring.callbacks",
    "ExportedPolicy": "deployment.exported",
    "export": "deployment.export",
}

__all__ = [
    "PAPI",
    "TRPL",
    "ExportedPolicy",
    "FixPO",
    "LeanPPO",
    "LeanRecurrentPPO",
    "LeanTRPO",
    "ProjectedGaussianDistribution",
    "RecurrentFixPO",
    "RecurrentTRPL",
    "SeedBatch",
    "StateBound",
    "TRPLPolicy",
    "TrustRegionCallback",
    "__version__",
    "export",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'sb3_trl' has no attribute {name!r}")
    return getattr(import_module(f"sb3_trl.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
