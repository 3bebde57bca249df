"""RL Zoo: registration of the package's algorithms, and the ``sb3-trl`` command."""

from sb3_trl.zoo.registry import hyperparameter_file, register

__all__ = ["hyperparameter_file", "register"]
