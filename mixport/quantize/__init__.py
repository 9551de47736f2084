"""Quantise: from a float model and images to a program whose every integer is fixed."""
