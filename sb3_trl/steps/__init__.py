"""Gradient steps on pure losses: eager, or compiled as one function of tensors."""
