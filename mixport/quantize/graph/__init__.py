"""The captured float graph: its capture, its exact rewrites, and what each of its nodes is to
quantisation.
"""
