"""Learned rounding and steps: the session of one build, and what it is made of."""
