"""Which tensors get codes, at which width, and which of them share a scale."""
