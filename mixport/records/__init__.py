"""What stages hand to each other: frozen records, targets, errors, progress, and what identifies them."""
