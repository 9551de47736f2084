"""NIPQ (arXiv 2206.00820): widths and intervals of every site learned by gradient, under a budget."""
