"""What TensorBoard shows beside single curves: the trust region in one dashboard, and the hyperparameters."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam, Logger, TensorBoardOutputFormat

from sb3_trl.schedules import StateBound

__all__ = ["CHARTS", "DashboardCallback", "hyperparameters", "write_layout"]

#: The charts of the dashboard: what is drawn together, values beside their bound. All algorithms share them, so
#: that TensorBoard, which merges the layouts of the runs it shows, draws each chart once.
CHARTS = {
    "KL divergence from the old policy (nats)": (
        "trust_region/kl_mean",
        "trust_region/kl_max",
        "trust_region/kl_bound",
        "fixpo/kl_max",
        "fixpo/kl_bound",
    ),
    "Distance of the means": (
        "trust_region/mean_distance_mean",
        "trust_region/mean_distance_max",
        "trust_region/mean_bound",
    ),
    "Distance of the covariances": (
        "trust_region/cov_distance_mean",
        "trust_region/cov_distance_max",
        "trust_region/cov_bound",
    ),
    "Entropy (nats)": ("trust_region/entropy", "trust_region/entropy_bound"),
    "Share of states projected, and outside": (
        "trust_region/projected_fraction",
        "trust_region/violation_fraction",
    ),
    "FixPO: penalty weight β": ("fixpo/beta",),
    "FixPO: steps of the fixup phase": ("fixpo/fixup_steps",),
}

#: Columns of the HParams tab beside the hyperparameters; TensorBoard takes their values from the curves.
METRICS = ("rollout/ep_rew_mean", "eval/mean_reward", "trust_region/kl_mean", "trust_region/violation_fraction")

#: Arguments of a constructor that do not change what is learned.
_NOT_HYPERPARAMETERS = ("policy", "env", "policy_kwargs", "tensorboard_log", "verbose", "device", "stats_window_size")


class DashboardCallback(BaseCallback):
    """Write the dashboard's layout and the hyperparameters to the TensorBoard log, once, as training starts.

    :param prefixes: What the algorithm's keys begin with; charts without such a key are left out.
    """

    def __init__(self, prefixes: Sequence[str]) -> None:
        super().__init__()
        self.prefixes = tuple(prefixes)

    def on_step(self) -> bool:
        """Do nothing, not even count."""
        return True

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        write_layout(self.logger, self.prefixes)
        for output in _tensorboards(self.logger):
            values = HParam(hyperparameters(self.model), dict.fromkeys(METRICS, 0.0))
            output.write({"hparams": values}, {"hparams": ()})


def write_layout(logger: Logger, prefixes: Sequence[str]) -> None:
    """Write the custom-scalars layout of the charts with a key that begins with one of ``prefixes``."""
    charts = {
        title: ["Multiline", [f"{key}$" for key in keys]]
        for title, keys in CHARTS.items()
        if any(key.startswith(tuple(prefixes)) for key in keys)
    }
    for output in _tensorboards(logger) if charts else ():
        output.writer.add_custom_scalars({"Trust region": charts})


def hyperparameters(model: BaseAlgorithm) -> dict[str, bool | float | str | None]:
    """Return what the model was made with, in numbers and strings; ``policy_kwargs`` one by one."""
    names = [name for name in inspect.signature(type(model)).parameters if not name.startswith("_")]
    values = {name: getattr(model, name) for name in names if name not in _NOT_HYPERPARAMETERS}
    values |= {f"policy/{key}": value for key, value in model.policy_kwargs.items()}
    values |= {"algorithm": type(model).__name__, "policy": type(model.policy).__name__, "n_envs": model.n_envs}
    return {key: _described(value) for key, value in sorted(values.items())}


def _described(value: Any) -> bool | float | str | None:
    """Return a number or a short string; a schedule by its value at the start and at the end."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if inspect.isclass(value) or isinstance(value, StateBound):
        return value.__name__ if inspect.isclass(value) else type(value).__name__
    if callable(value) and len(inspect.signature(value).parameters) == 1:
        start, end = value(1.0), value(0.0)
        return start if start == end else f"{start:g} to {end:g}"
    return str(value)


def _tensorboards(logger: Logger) -> list[TensorBoardOutputFormat]:
    return [output for output in logger.output_formats if isinstance(output, TensorBoardOutputFormat)]
