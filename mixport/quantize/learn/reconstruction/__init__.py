"""Rounding, steps and scales of a unit, learned until its output is closest to the float one."""
