"""The trust region layer of Algorithm 1: projection and entropy control, in one differentiable module."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sb3_trl.projections.distribution import Bound, Distribution
from sb3_trl.projections.entropy import EntropySchedule, control_entropy
from sb3_trl.projections.projection import Projection

__all__ = ["TrustRegionLayer"]

D = TypeVar("D", bound=Distribution)


class TrustRegionLayer(nn.Module):
    """Algorithm 1 of Otto et al. (2021): (π_θ, π_old) ↦ π̃.

    Its only state is the entropy of the first batch, which the entropy schedule starts from, once there has been one.

    :param projection: The trust region; ``None`` leaves the prediction where it is.
    :param entropy_schedule: Lower bound of the entropy over training; ``None`` for no entropy control.
    :param entropy_equality: Make the entropy equal to its bound instead of at least that.
    :param entropy_first: Control the entropy before the trust region, which then has the last word; otherwise
        the entropy has it, and may take the policy out of the trust region.
    """

    initial_entropy: Tensor
    has_initial_entropy: Tensor

    def __init__(
        self,
        projection: Projection | None,
        entropy_schedule: EntropySchedule | None = None,
        entropy_equality: bool = False,
        entropy_first: bool = False,
    ) -> None:
        super().__init__()
        self.projection = projection
        self.entropy_schedule = entropy_schedule
        self.entropy_equality = entropy_equality
        self.entropy_first = entropy_first
        self.register_buffer("initial_entropy", torch.zeros((), dtype=torch.float64))
        self.register_buffer("has_initial_entropy", torch.zeros((), dtype=torch.bool))

    def forward(
        self,
        new: D,
        old: D,
        mean_bound: Bound | None = None,
        cov_bound: Bound | None = None,
        entropy_bound: Bound | None = None,
        *,
        kl_bound: Bound | None = None,
    ) -> D:
        """Return the projected policy π̃, differentiable in ``new``.

        :param new: The network's prediction π_θ.
        :param old: The policy that collected the data, of the same kind.
        :param mean_bound: ε_μ now, of Gaussians; the projection's own if ``None``.
        :param cov_bound: ε_Σ now, likewise.
        :param entropy_bound: β now in nats, no entropy control if ``None``.
        :param kl_bound: ε now, of categoricals; the projection's own if ``None``.
        """
        # A projection of the user's own need not know the bound of categoricals.
        extra: dict[str, Any] = {} if kl_bound is None else {"kl_bound": kl_bound}
        if self.projection is not None and self.projection.constrains_entropy:
            extra |= {"entropy_bound": entropy_bound, "entropy_equality": self.entropy_equality}
            return self.projection(new, old, mean_bound, cov_bound, **extra)
        if entropy_bound is not None and self.entropy_first:
            new = control_entropy(new, entropy_bound, self.entropy_equality)
        projected = new if self.projection is None else self.projection(new, old, mean_bound, cov_bound, **extra)
        if entropy_bound is not None and not self.entropy_first:
            projected = control_entropy(projected, entropy_bound, self.entropy_equality)
        return projected

    def entropy_bound(self, old: Distribution, progress: float) -> float | None:
        """Return β at this point of training, ``None`` without entropy control.

        The first call ever takes the initial entropy from ``old``, the policy of the first batch.

        :param old: The policy that collected the current batch.
        :param progress: 0 at the start of training, 1 at its end.
        """
        if self.entropy_schedule is None:
            return None
        if not bool(self.has_initial_entropy):
            self.initial_entropy.copy_(old.detach().entropy().mean())
            self.has_initial_entropy.fill_(True)
        return self.entropy_schedule(self.initial_entropy.item(), progress, old.dim)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any, **options: Any) -> None:
        """Load also what was saved when NaN stood for an initial entropy that is not there yet."""
        entropy = state_dict.get(f"{prefix}initial_entropy")
        if entropy is not None and f"{prefix}has_initial_entropy" not in state_dict:
            state_dict[f"{prefix}has_initial_entropy"] = ~entropy.isnan()
            state_dict[f"{prefix}initial_entropy"] = entropy.nan_to_num(nan=0.0)
        super()._load_from_state_dict(state_dict, prefix, *arguments, **options)
