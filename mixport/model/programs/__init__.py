"""Exported programs (.pt2): read without running code of theirs, and the fx graphs inside them."""
