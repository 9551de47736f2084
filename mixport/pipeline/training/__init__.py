"""The jobs around training: train a model, and take one weight through many widths."""
