"""MLP reconstruction (APHQ-ViT, arXiv 2504.02508): ReLU in the place of GELU, and the layers around it
learned anew.
"""
