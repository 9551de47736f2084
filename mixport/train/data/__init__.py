"""Training images: where they come from, in which order and with which augmentation a step sees them."""
