"""Gradient steps on pure losses: eager, compiled, or mapped over seeds."""
