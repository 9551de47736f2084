"""Units of layers that are learned together: found, merged, run on the graph."""
