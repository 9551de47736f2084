"""Pools in the forms that integer kernels have."""
