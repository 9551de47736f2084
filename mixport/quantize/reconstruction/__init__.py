"""Learned rounding: unit by unit, until the quantised output is closest to the float one."""
