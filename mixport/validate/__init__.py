"""Validation: an independent integer interpreter, the runtimes, and comparison with tolerance 0."""
