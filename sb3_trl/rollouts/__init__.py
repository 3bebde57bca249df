"""Rollouts that take less time than SB3's, and look the same to callbacks, buffers and environments."""
