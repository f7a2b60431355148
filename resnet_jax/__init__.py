"""Residual networks in JAX and Flax."""
