"""What any learning loop needs: activations on disk, float32 rules, checkpoints of finished units, and a
watch on the loss.
"""
