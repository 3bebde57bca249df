"""Differentiable trust-region projections of Gaussian and categorical policies, in PyTorch alone.

Otto et al., *Differentiable Trust Region Layers for Deep Reinforcement Learning*, ICLR 2021
(https://openreview.net/forum?id=qYZD-AO1Vn). Equation numbers in this package are that paper's.
"""

from sb3_trl.projections.categorical import Categorical
from sb3_trl.projections.distribution import Distribution
from sb3_trl.projections.entropy import EntropySchedule, control_entropy
from sb3_trl.projections.frobenius import FrobeniusProjection
from sb3_trl.projections.gaussian import Gaussian
from sb3_trl.projections.joint_kl import JointKLProjection
from sb3_trl.projections.kl import KLProjection
from sb3_trl.projections.layer import TrustRegionLayer
from sb3_trl.projections.projection import Projection
from sb3_trl.projections.wasserstein import WassersteinProjection

__all__ = [
    "Categorical",
    "Distribution",
    "EntropySchedule",
    "FrobeniusProjection",
    "Gaussian",
    "JointKLProjection",
    "KLProjection",
    "Projection",
    "TrustRegionLayer",
    "WassersteinProjection",
    "control_entropy",
]
