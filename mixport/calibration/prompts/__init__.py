"""Class names to texts, each with a seed."""
