"""The decisions written into the graph as mixport:: operators, and the exact simulation of what was
written.
"""
