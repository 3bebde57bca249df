"""The RL Zoo: registration of the algorithms, its experiment, samplers, and the wrappers around its scripts."""

from sb3_trl.zoo.registry import hyperparameter_file, register

__all__ = ["hyperparameter_file", "register"]
