"""What the tests of TRPL share: projections, parameterisations of the standard deviation, fast learning rates."""

from itertools import product

import pytest
import torch as th
from support import KINDS, make_model

from sb3_trl import TRPL
from sb3_trl.projections import FrobeniusProjection, JointKLProjection, KLProjection, WassersteinProjection

PROJECTIONS = {
    "kl": KLProjection,
    "w2": WassersteinProjection,
    "frobenius": FrobeniusProjection,
    "joint_kl": JointKLProjection,
}
SCALES = {
    f"{covariance}{' contextual' * contextual}": {"covariance": covariance, "contextual_std": contextual}
    for covariance, contextual in product(("diag", "full"), (False, True))
}
every_scale = pytest.mark.parametrize("scale", SCALES)
every_projection = pytest.mark.parametrize("kind", KINDS)

#: Learning rates at which two epochs leave the trust region by far.
FAST = {"learning_rate": 1e-2, "n_epochs": 3, "batch_size": 16}


def sgd_model(**kwargs) -> TRPL:
    """A model whose epochs are single steps of plain gradient descent on the whole rollout."""
    sgd = {"optimizer_class": th.optim.SGD}
    kwargs["policy_kwargs"] = sgd | kwargs.get("policy_kwargs", {})
    return make_model(**({"batch_size": 64, "n_epochs": 4, "learning_rate": 0.3, "critic_learning_rate": 0.1} | kwargs))
