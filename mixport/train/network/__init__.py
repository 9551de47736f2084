"""The prepared graph as a network that can be trained: weights and biases of its layers are parameters."""
