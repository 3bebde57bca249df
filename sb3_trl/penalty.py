"""The mathematics of penalised policy optimisation (FixPO), free of plumbing: torch, and the projections' divergences.

Zentner et al., *Guaranteed Trust Region Optimization via Two-Phase KL Penalization*, 2023
(https://arxiv.org/abs/2312.05405).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sb3_trl.projections.categorical import bernoulli_kl, categorical_kl

__all__ = ["BetaDual", "bernoulli_kl", "beta_step", "categorical_kl", "halving_search", "kl_statistic"]


def kl_statistic(kl: Tensor, statistic: Literal["max", "mean"]) -> Tensor:
    """Return the largest or the mean divergence of a batch of states, without gradient."""
    return (kl.max() if statistic == "max" else kl.mean()).detach()


def beta_step(state: Tensor, divergence: Tensor, settings: Tensor) -> Tensor:
    """Return β and its moments after Adam's step on L_β = β·sg[ε_KL − C_β·D_KL], β ≥ 0.

    :param state: β, Adam's two moments and the number of steps, ``(4,)``, float64.
    :param divergence: D_KL, a scalar; one that is not finite is no evidence and changes nothing.
    :param settings: ε_KL, C_β and Adam's learning rate, ``(3,)``, float64.
    """
    beta, mean, square, n_steps = state.unbind()
    kl_bound, target_coef, learning_rate = settings.unbind()
    slope = kl_bound - target_coef * divergence.to(state.dtype)
    n_steps = n_steps + 1
    mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope.square()
    denominator = (square / (1 - 0.999**n_steps)).sqrt() + 1e-8
    beta = (beta - learning_rate * mean / (1 - 0.9**n_steps) / denominator).clamp(min=0)
    return torch.where(slope.isfinite(), torch.stack([beta, mean, square, n_steps]), state)


class BetaDual(nn.Module):
    """The multiplier β ≥ 0 of the KL penalty, tuned by Adam on L_β = β·sg[ε_KL − C_β·D_KL].

    β grows while C_β·D_KL is above ε_KL, so that D_KL settles near ε_KL/C_β, inside the trust region.

    :param kl_bound: ε_KL, nats.
    :param target_coef: C_β ≥ 1.
    :param init: β at the start.
    :param learning_rate: Adam's; 0 keeps β constant.
    """

    #: β, Adam's two moments and the number of steps.
    state: Tensor
    #: ε_KL, C_β and the learning rate: tensors, too, since they may change over training.
    settings: Tensor

    def __init__(self, kl_bound: float, target_coef: float, init: float, learning_rate: float) -> None:
        super().__init__()
        self.register_buffer("state", torch.tensor([init, 0.0, 0.0, 0.0], dtype=torch.float64))
        self.register_buffer("settings", torch.zeros(3, dtype=torch.float64), persistent=False)
        self.set(kl_bound, target_coef, learning_rate)

    def set(self, kl_bound: float, target_coef: float, learning_rate: float) -> None:
        """Go on with these settings."""
        self.settings.copy_(torch.tensor([kl_bound, target_coef, learning_rate], dtype=torch.float64))

    @property
    def value(self) -> Tensor:
        """β."""
        return self.state[0]

    @property
    def rule(self) -> dict[str, Any]:
        """β among what a gradient step takes and changes: ``extra`` tensors, and what they are ``after`` it.

        The step reports D_KL as ``kl``.
        """
        return {"extra": (self.state, self.settings), "after": _after_step}

    def update(self, divergence: Tensor) -> None:
        """Take one step on L_β, in a loop of one's own; FixPO's gradient steps go by ``rule``.

        :param divergence: D_KL, a scalar.
        """
        self.state.copy_(beta_step(self.state, divergence.detach(), self.settings))


def _after_step(extra: tuple[Tensor, ...], scalars: dict[str, Tensor]) -> tuple[Tensor, ...]:
    state, settings = extra
    return beta_step(state, scalars["kl"], settings), settings


@torch.no_grad()
def halving_search(
    parameters: Sequence[Tensor],
    old: Sequence[Tensor],
    is_feasible: Callable[[], bool],
    max_halvings: int = 30,
) -> float:
    """Move ``parameters`` back towards ``old`` until the policy they make is feasible.

    θ(λ) = θ_old + λ(θ − θ_old) is tried at λ = 1, ½, ¼, …; parameters are left at the first feasible one, or
    at θ_old, where every divergence is 0, if none is. Always ends. Where a parameter is not finite, λ is 0.

    :param parameters: θ, changed in place.
    :param old: θ_old, of the same shapes.
    :param is_feasible: Whether the policy with the current values of ``parameters`` obeys its constraints.
    :param max_halvings: How often λ is halved before it becomes 0.
    :return: λ.
    """
    target = [p.clone() for p in parameters]
    scale = 1.0
    if all(bool(p.isfinite().all()) for p in target):
        for _ in range(max_halvings + 1):
            for p, start, end in zip(parameters, old, target, strict=True):
                p.copy_(torch.lerp(start, end, scale) if scale < 1 else end)
            if is_feasible():
                return scale
            scale /= 2
    for p, start in zip(parameters, old, strict=True):
        p.copy_(start)
    return 0.0
