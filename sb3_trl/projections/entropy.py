"""Entropy control: a lower bound on (or a value for) the policy's entropy, and its schedule over training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from sb3_trl.projections.derivatives import constant
from sb3_trl.projections.distribution import Bound, Distribution

__all__ = ["EntropySchedule", "control_entropy"]

D = TypeVar("D", bound=Distribution)


def control_entropy(policy: D, bound: Bound, equality: bool = False) -> D:
    """Return the policy with entropy β where it has less (section 4.2 of Otto et al., 2021).

    Where H ≥ β it comes back bit for bit. The bound is a constant, without derivatives.

    A Gaussian's standard deviation is scaled by c = exp((β − H)/d), after Akrour et al. (2019). (Line 13 of the
    paper's Algorithm 1 scales the covariance; with this c it is the standard deviation that makes the entropy equal
    to β.) A categorical moves towards the uniform distribution over the actions that are possible, see
    ``Categorical.with_entropy``.

    :param policy: A ``Gaussian`` or a ``Categorical``.
    :param bound: β in nats, of the whole action, a number or ``(*batch,)``. One per state makes a
        non-contextual scale contextual.
    :param equality: Make the entropy equal to β everywhere, also where it is above.
    :raises ValueError: if a categorical cannot have entropy β.
    """
    return policy.with_entropy(constant(bound, policy.tensor), equality)


@dataclass(frozen=True)
class EntropySchedule:
    """How the entropy bound falls from the first batch's entropy to its target.

    ``"exp"``: β = κd + (H₀ − κd)·τ^(10 p) (section 5 of Otto et al., 2021).
    ``"linear"``: β = H₀ + p(κd − H₀).

    p is training progress from 0 to 1; beyond the end β stays where it is.

    :param kind: ``"exp"`` or ``"linear"``.
    :param target_entropy: κ, nats per action dimension; of a categorical, per factor.
    :param temperature: τ ∈ (0, 1]; unused by ``"linear"``.
    :raises ValueError: for another kind, or a temperature outside (0, 1].
    """

    kind: Literal["exp", "linear"] = "exp"
    target_entropy: float = 0.0
    temperature: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in ("exp", "linear"):
            raise ValueError(f"entropy_schedule={self.kind!r} is unknown: choose 'exp', 'linear' or None.")
        if not 0 < self.temperature <= 1:
            raise ValueError(f"temperature={self.temperature} must be in (0, 1]; smaller decays faster.")

    def __call__(self, initial_entropy: float, progress: float, dim: int) -> float:
        """Return β in nats.

        :param initial_entropy: H₀, of the first batch.
        :param progress: p, 0 at the start of training and 1 at its end.
        :param dim: d, the number of action dimensions.
        """
        progress = min(max(progress, 0.0), 1.0)
        target = self.target_entropy * dim
        kept = self.temperature ** (10 * progress) if self.kind == "exp" else 1 - progress
        return target + (initial_entropy - target) * kept
