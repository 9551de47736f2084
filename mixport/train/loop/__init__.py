"""The loop that every method shares: epochs, schedule, checkpoints."""
