"""Weights folded and laid out for the kernels."""
