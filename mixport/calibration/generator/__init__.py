"""A diffusers pipeline found, checked, opened, and made to draw."""
