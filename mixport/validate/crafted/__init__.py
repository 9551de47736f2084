"""Inputs built to hit ties and saturation, one fused unit at a time."""
