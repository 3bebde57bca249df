"""Trust-region reinforcement learning for Stable-Baselines3."""

from sb3_trl.version import __version__

__all__ = ["__version__"]
