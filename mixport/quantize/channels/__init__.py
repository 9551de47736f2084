"""Exact changes of the float graph that make narrow codes cheaper: channels levelled, rotated, in another
basis.
"""
