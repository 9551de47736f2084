"""From what tensors hold to scales and zero points: histograms, ranges, and the tensors that are tied."""
