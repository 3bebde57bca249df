"""Actor-critic policies whose Gaussian can be projected, and action distributions as tensors."""

from sb3_trl.policies.actor_critic import (
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
    SingleOptimizerPolicy,
    TRPLCnnPolicy,
    TRPLMultiInputPolicy,
    TRPLPolicy,
)
from sb3_trl.policies.categorical import ProjectedCategoricalDistribution
from sb3_trl.policies.distributions import ProjectedGaussianDistribution
from sb3_trl.policies.recurrent import TRPLCnnLstmPolicy, TRPLLstmPolicy, TRPLMultiInputLstmPolicy

__all__ = [
    "CnnPolicy",
    "MlpPolicy",
    "MultiInputPolicy",
    "ProjectedCategoricalDistribution",
    "ProjectedGaussianDistribution",
    "SingleOptimizerPolicy",
    "TRPLCnnLstmPolicy",
    "TRPLCnnPolicy",
    "TRPLLstmPolicy",
    "TRPLMultiInputLstmPolicy",
    "TRPLMultiInputPolicy",
    "TRPLPolicy",
]
