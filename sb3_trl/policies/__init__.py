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

__all__ = [
    "CnnPolicy",
    "MlpPolicy",
    "MultiInputPolicy",
    "ProjectedCategoricalDistribution",
    "ProjectedGaussianDistribution",
    "SingleOptimizerPolicy",
    "TRPLCnnPolicy",
    "TRPLMultiInputPolicy",
    "TRPLPolicy",
]
