"""FixPO watched step by step: the divergence and β of every gradient step, and which of them fix up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trl.algorithms.fixpo import FixPO
from sb3_trl.penalty import BetaDual
from sb3_trl.steps.flat_adam import Flat

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RecordedFixPO", "draw_steps", "fixpo_settings", "fixup_steps", "record", "shown_updates"]


class _RecordedDual(BetaDual):
    """A multiplier that tells of every step."""

    keep: Callable[[float, float], None]

    @property
    def rule(self) -> dict[str, Any]:
        """The rule of steps, which calls ``keep`` with KL and β."""
        rule = super().rule

        def recorded(extra: Flat, scalars: dict[str, th.Tensor]) -> Flat:
            changed = rule["after"](extra, scalars)
            self.keep(scalars["kl"].item(), changed[0][0].item())
            return changed

        return rule | {"after": recorded}


class RecordedFixPO(FixPO):
    """FixPO that keeps KL and β of every gradient step.

    ``history`` holds tuples (timesteps, update, kind, KL, β). Kind is ``"primary"`` or ``"fixup"`` for a gradient step;
    ``"end"`` marks the end of a fixup phase, which may have needed no step.
    """

    def _setup_model(self) -> None:
        super()._setup_model()
        self.dual = _RecordedDual(self.kl_bound, self.kl_target_coef, self.beta_init, self.beta_learning_rate)
        self.dual.to(self.device).keep = self._keep
        self.history: list[tuple[int, int, str, float, float]] = []
        self._kind, self._update = "primary", 0

    def train(self) -> None:
        """Update the policy, and count."""
        super().train()
        self._update += 1

    def _fixup_phase(self, *arguments: Any) -> list[th.Tensor]:
        self._kind = "fixup"
        steps = super()._fixup_phase(*arguments)
        self._kind = "end"
        self._keep(float("nan"), float("nan"))
        self._kind = "primary"
        return steps

    def _keep(self, kl: float, beta: float) -> None:
        self.history.append((self.num_timesteps, self._update, self._kind, kl, beta))


def fixpo_settings(task: str) -> dict[str, Any]:
    """Return the number of environments, and the constructor's arguments, of a task in ``fixpo_paper.yml``."""
    from sb3_trl.zoo.experiment import read_settings
    from sb3_trl.zoo.registry import register

    register()
    settings = read_settings("fixpo", task, "fixpo_paper.yml")
    for key in ("normalize", "policy", "n_timesteps", "env_kwargs"):
        settings.pop(key, None)
    settings["policy_kwargs"] = eval(settings.get("policy_kwargs", "None"))
    return settings


def record(task: str, timesteps: int, seed: int = 0, **settings: Any) -> pd.DataFrame:
    """Train FixPO and return its history: columns ``timesteps``, ``update``, ``kind``, ``kl``, ``beta``.

    :param task: Id of an environment.
    :param timesteps: Steps to train for.
    :param seed: Of environment and model.
    :param settings: ``n_envs``, and arguments of the constructor; the others are the task's in ``fixpo_paper.yml``.
    """
    arguments = fixpo_settings(task) | settings
    env = VecNormalize(make_vec_env(task, arguments.pop("n_envs"), seed=seed), gamma=arguments["gamma"])
    model = RecordedFixPO("MlpPolicy", env, compile=False, seed=seed, device="cpu", **arguments)
    model.learn(timesteps)
    env.close()
    return pd.DataFrame(model.history, columns=["timesteps", "update", "kind", "kl", "beta"])


def fixup_steps(history: pd.DataFrame) -> pd.Series:
    """Return the number of gradient steps of the fixup phases of every update, by timesteps."""
    return (history.kind == "fixup").groupby(history.timesteps).sum()


def shown_updates(history: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the rows of n consecutive updates from the middle of training."""
    first = max((history["update"].max() + 1 - n) // 2, 0)
    return history[history["update"].between(first, first + n - 1)]


def draw_steps(axis: Axes, history: pd.DataFrame, kl_bound: float, kl_target_coef: float) -> None:
    """Draw KL (red, in nats) and β (blue) over gradient steps.

    Fixup phases are green: a band as wide as their steps, a thin line where none was needed. Grey lines divide updates.

    :param axis: Where to draw.
    :param history: What ``record`` returned, or part of it.
    :param kl_bound: ε_KL.
    :param kl_target_coef: C_β.
    """
    is_step = history.kind != "end"
    position = is_step.cumsum()
    steps, x = history[is_step], position[is_step]
    axis.plot(x, steps.kl, color="C3", linewidth=0.9, label="largest KL of the states of the step")
    axis.axhline(kl_bound, color="C3", linestyle="--", linewidth=0.9, label="bound $\\epsilon_{KL}$")
    if kl_target_coef != 1:
        target = kl_bound / kl_target_coef
        axis.axhline(target, color="0.4", linestyle=":", linewidth=1.2, label="aim $\\epsilon_{KL}/C_\\beta$")
    started = 0
    for kind, at in zip(history.kind, position, strict=True):
        if kind == "end":
            axis.axvspan(started + 0.5, at + 0.5, color="C2", alpha=0.35, linewidth=1 if at == started else 0)
        elif kind == "primary":
            started = at
    axis.axvspan(-2, -1, color="C2", alpha=0.35, label="fixup phase")
    for end in position.groupby(history["update"]).last().iloc[:-1]:
        axis.axvline(end + 0.5, color="0.2", linewidth=1.2)
    axis.set(xlabel="gradient step", ylabel="KL divergence (nats)", xlim=(0, position.max() + 1), ylim=(0, None))
    twin = axis.twinx()
    twin.plot(x, steps.beta, color="C0", linewidth=0.9, label="weight $\\beta$")
    twin.set_ylabel("$\\beta$", color="C0")
    twin.tick_params(axis="y", colors="C0")
