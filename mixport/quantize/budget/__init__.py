"""Weight widths under a size budget: how much each layer loses at each width, and the choice of all
together.
"""
