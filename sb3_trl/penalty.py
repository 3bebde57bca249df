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

__all__ = ["BetaDual", "bernoulli_kl", "beta_step", "categorical_kl", "halving_search", "kl_penalty", "kl_statistic"]


def kl_statistic(
    kl: Tensor, statistic: Literal["max", "mean"], tasks: Tensor | None = None, n_tasks: int = 1
) -> Tensor:
    """Return the largest or the mean divergence of a batch of states, without gradient: a scalar, or one per task.

    :param kl: ``(n,)``.
    :param statistic: ``"max"`` or ``"mean"``.
    :param tasks: Number of every state's task, ``(n,)``; ``None`` for one task.
    :param n_tasks: K. From 2 the result is ``(K,)``, not finite where a task has no state.
    """
    kl = kl.detach()
    if tasks is None or n_tasks == 1:
        return kl.max() if statistic == "max" else kl.mean()
    is_own = tasks == torch.arange(n_tasks, device=tasks.device)[:, None]
    if statistic == "max":
        return torch.where(is_own, kl, -torch.inf).amax(-1)
    return torch.where(is_own, kl, 0.0).sum(-1) / is_own.sum(-1)


def kl_penalty(kl: Tensor, dual: Tensor, tasks: Tensor | None = None) -> Tensor:
    """Return sg(β)·E[KL(s)]; where every task has its own multiplier, E[sg(β_k(s))·KL(s)], k(s) the state's task.

    :param kl: ``(n,)``.
    :param dual: β, or those of K tasks, in a row each, as ``BetaDual`` keeps them; ``(4,)`` or ``(K, 4)``.
    :param tasks: Number of every state's task, ``(n,)``.
    """
    beta = dual[..., 0].to(kl.dtype)
    if tasks is None or beta.numel() == 1:
        return beta.reshape(()) * kl.mean()
    return (beta[tasks] * kl).mean()


def beta_step(state: Tensor, divergence: Tensor, settings: Tensor) -> Tensor:
    """Return β and its moments after Adam's step on L_β = β·sg[ε_KL − C_β·D_KL], β ≥ 0; of K tasks, K such steps.

    :param state: β, Adam's two moments and the number of steps, ``(4,)`` or ``(K, 4)``, float64.
    :param divergence: D_KL, a scalar or ``(K,)``; one that is not finite is no evidence and changes nothing.
    :param settings: ε_KL, C_β and Adam's learning rate, ``(3,)``, float64.
    """
    beta, mean, square, n_steps = state.unbind(-1)
    kl_bound, target_coef, learning_rate = settings.unbind()
    slope = kl_bound - target_coef * divergence.to(state.dtype)
    n_steps = n_steps + 1
    mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope.square()
    denominator = (square / (1 - 0.999**n_steps)).sqrt() + 1e-8
    beta = (beta - learning_rate * mean / (1 - 0.9**n_steps) / denominator).clamp(min=0)
    return torch.where(slope.isfinite().unsqueeze(-1), torch.stack([beta, mean, square, n_steps], -1), state)


class BetaDual(nn.Module):
    """The multiplier β ≥ 0 of the KL penalty, tuned by Adam on L_β = β·sg[ε_KL − C_β·D_KL].

    β grows while C_β·D_KL is above ε_KL, so that D_KL settles near ε_KL/C_β, inside the trust region. With several
    tasks there is one for each, L_β = Σ_k β_k·sg[ε_KL − C_β·D_KL,k]: each has moments and a number of steps of its own,
    and takes none after a minibatch without a state of its task.

    :param kl_bound: ε_KL, nats.
    :param target_coef: C_β ≥ 1.
    :param init: β at the start.
    :param learning_rate: Adam's; 0 keeps β constant.
    :param n_tasks: K, which may grow; ``None`` for one β of all states.
    """

    #: β, Adam's two moments and the number of steps: ``(4,)``, of K tasks ``(K, 4)``.
    state: Tensor
    #: ε_KL, C_β and the learning rate: tensors, too, since they may change over training.
    settings: Tensor

    def __init__(
        self, kl_bound: float, target_coef: float, init: float, learning_rate: float, n_tasks: int | None = None
    ) -> None:
        super().__init__()
        self.init = init
        shape = (4,) if n_tasks is None else (n_tasks, 4)
        self.register_buffer("state", self._fresh(shape))
        self.register_buffer("settings", torch.zeros(3, dtype=torch.float64), persistent=False)
        self.set(kl_bound, target_coef, learning_rate)

    def set(self, kl_bound: float, target_coef: float, learning_rate: float, n_tasks: int | None = None) -> None:
        """Go on with these settings, and with a β for so many tasks: those that are new begin as all did.

        There is room for a power of two then, which no task has yet, so that what is compiled for one number of rows
        serves for many numbers of tasks.
        """
        self.settings.copy_(torch.tensor([kl_bound, target_coef, learning_rate], dtype=torch.float64))
        if n_tasks is not None and n_tasks > len(self.state):
            n_new = (1 << (n_tasks - 1).bit_length()) - len(self.state)
            self.state = torch.cat([self.state, self._fresh((n_new, 4)).to(self.state.device)])

    def _fresh(self, shape: tuple[int, ...]) -> Tensor:
        return torch.tensor([self.init, 0.0, 0.0, 0.0], dtype=torch.float64).expand(shape).clone()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Take as many tasks as were saved.

        What was saved of one β for all states is where every task begins; one for all begins at the tasks' mean.
        """
        saved = state_dict.get(f"{prefix}state")
        if saved is not None and saved.dim() > self.state.dim():
            state_dict[f"{prefix}state"] = saved.mean(0)
        elif saved is not None and self.state.dim() == 2:
            if saved.dim() == 1:
                state_dict[f"{prefix}state"] = saved.expand(len(self.state), 4)
            else:
                self.state = torch.empty_like(saved, device=self.state.device)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    @property
    def value(self) -> Tensor:
        """β, a scalar, or those of the tasks, ``(K,)``."""
        return self.state[..., 0]

    @property
    def rule(self) -> dict[str, Any]:
        """β among what a gradient step takes and changes: ``extra`` tensors, and what they are ``after`` it.

        The step reports D_KL as ``kl``, a scalar or one number for each task.
        """
        return {"extra": (self.state, self.settings), "after": _after_step}

    def update(self, divergence: Tensor) -> None:
        """Take one step on L_β, in a loop of one's own; FixPO's gradient steps go by ``rule``.

        :param divergence: D_KL, a scalar, or those of the tasks.
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
