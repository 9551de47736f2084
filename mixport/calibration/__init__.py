"""Calibration images: where they come from, and their cache."""
