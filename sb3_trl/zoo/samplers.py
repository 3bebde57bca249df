"""Search spaces for ``sb3-trl train --optimize-hyperparameters``."""

from __future__ import annotations

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import (
    convert_onpolicy_params,
    sample_ppo_lstm_params,
    sample_ppo_params,
    sample_trpo_params,
)

__all__ = ["CONVERTERS", "SAMPLERS"]


def sample_trpl_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Draw TRPL's hyperparameters; no minibatch can be larger than a rollout.

    :param trial: The Optuna trial.
    :param n_actions: 0 where actions are discrete.
    :param n_envs: Unused, as is the next: the RL Zoo calls every sampler with them.
    :param additional_args: Unused.
    """
    own: dict[str, Any] = {
        "n_critic_epochs": trial.suggest_categorical("n_critic_epochs", [5, 10, 20]),
        "critic_learning_rate": trial.suggest_float("critic_learning_rate", 5e-5, 5e-3, log=True),
        "trust_region_coef": trial.suggest_float("trust_region_coef", 1.0, 64.0, log=True),
    }
    if n_actions:
        own |= {
            "projection": trial.suggest_categorical("projection", ["kl", "w2", "frobenius"]),
            "mean_bound": trial.suggest_float("mean_bound", 5e-3, 0.2, log=True),
            "cov_bound": trial.suggest_float("cov_bound", 1e-4, 1e-2, log=True),
            "init_std": trial.suggest_float("init_std", 0.1, 1.0, log=True),
        }
    else:
        own |= {"kl_bound": trial.suggest_float("kl_bound", 1e-3, 0.2, log=True)}
    return convert_trpl_params(_sample_common(trial) | own)


def sample_fixpo_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Draw FixPO's hyperparameters; parameters as in ``sample_trpl_params``."""
    own = {
        "kl_bound": trial.suggest_float("kl_bound", 0.02, 1.0, log=True),
        "kl_target_coef": trial.suggest_float("kl_target_coef", 1.0, 6.0),
        "beta_learning_rate": trial.suggest_float("beta_learning_rate", 1e-3, 0.1, log=True),
        "vf_coef": trial.suggest_float("vf_coef", 0.05, 1.0, log=True),
        "normalize_advantage": trial.suggest_categorical("normalize_advantage", [False, True]),
    }
    return convert_onpolicy_params(_sample_common(trial) | own)


def sample_papi_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Draw PAPI's hyperparameters; parameters as in ``sample_trpl_params``."""
    own = {
        "n_critic_epochs": trial.suggest_categorical("n_critic_epochs", [5, 10, 20]),
        "critic_learning_rate": trial.suggest_float("critic_learning_rate", 5e-5, 5e-3, log=True),
        "kl_bound": trial.suggest_float("kl_bound", 3e-3, 0.1, log=True),
        "clip_range": trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3, 0.4]),
        "init_std": trial.suggest_float("init_std", 0.1, 1.0, log=True),
    }
    return convert_trpl_params(_sample_common(trial) | own)


def sample_recurrent_trpl_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Draw RecurrentTRPL's hyperparameters; parameters as in ``sample_trpl_params``."""
    return _with_memory(sample_trpl_params(trial, n_actions, n_envs, additional_args), **_sample_memory(trial))


def sample_recurrent_fixpo_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Draw RecurrentFixPO's hyperparameters; parameters as in ``sample_trpl_params``."""
    return _with_memory(sample_fixpo_params(trial, n_actions, n_envs, additional_args), **_sample_memory(trial))


def _sample_memory(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "sequence_length": trial.suggest_categorical("sequence_length", [None, 16, 64]),
        "lstm_hidden_size": trial.suggest_categorical("lstm_hidden_size", [32, 64, 128, 256]),
    }


def _with_memory(params: dict[str, Any], sequence_length: int | None, lstm_hidden_size: int) -> dict[str, Any]:
    policy_kwargs = params["policy_kwargs"] | {"lstm_hidden_size": lstm_hidden_size}
    return params | {"sequence_length": sequence_length, "policy_kwargs": policy_kwargs}


def _sample_common(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "n_steps_pow": trial.suggest_int("n_steps_pow", 9, 13),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 9),
        "n_epochs": trial.suggest_categorical("n_epochs", [5, 10, 20]),
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-4, 0.05, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 1e-4, 0.1, log=True),
        "net_arch": trial.suggest_categorical("net_arch", ["tiny", "small", "medium"]),
        "activation_fn": trial.suggest_categorical("activation_fn", ["tanh", "relu"]),
    }


def convert_trpl_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments that a trial's parameters stand for; PAPI's too."""
    params = dict(sampled_params)
    own = {"init_std": params.pop("init_std")} if "init_std" in params else {}
    params = convert_onpolicy_params(params)
    params["policy_kwargs"] |= own
    return params


def convert_recurrent_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments that a trial's parameters stand for, of an algorithm with a memory."""
    params = dict(sampled_params)
    memory = {name: params.pop(name) for name in ("sequence_length", "lstm_hidden_size")}
    return _with_memory(convert_trpl_params(params), **memory)


#: By RL Zoo key.
SAMPLERS = {
    "trpl": sample_trpl_params,
    "fixpo": sample_fixpo_params,
    "papi": sample_papi_params,
    "lean_ppo": sample_ppo_params,
    "lean_trpo": sample_trpo_params,
    "recurrent_trpl": sample_recurrent_trpl_params,
    "recurrent_fixpo": sample_recurrent_fixpo_params,
    "lean_recurrent_ppo": sample_ppo_lstm_params,
}
CONVERTERS = {
    "trpl": convert_trpl_params,
    "fixpo": convert_onpolicy_params,
    "papi": convert_trpl_params,
    "lean_ppo": convert_onpolicy_params,
    "lean_trpo": convert_onpolicy_params,
    "recurrent_trpl": convert_recurrent_params,
    "recurrent_fixpo": convert_recurrent_params,
    "lean_recurrent_ppo": convert_onpolicy_params,
}
