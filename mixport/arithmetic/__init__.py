"""The arithmetic: what codes, sums and requantisation are, and the functions and proofs that follow from them
alone.
"""
