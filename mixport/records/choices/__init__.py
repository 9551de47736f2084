"""What is chosen, and how: widths, algorithms, and the records of searches."""
