"""Exact rewrites of the float graph into forms that the target's kernels run faster, or that keep codes
longer.
"""
