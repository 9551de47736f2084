"""Weights to codes, and what the kernels of the target's machine ask of them."""
