"""Static proofs: bounds that hold for every input, from the integers alone."""
