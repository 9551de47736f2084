"""Training for low bits: another way to choose weights, widths and intervals, before the same exporter."""
