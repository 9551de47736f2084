"""Weights that survive many widths: SymReg and SatNL (arXiv 2208.00338), and what they are combined with."""
