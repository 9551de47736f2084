"""Rewrites of the lowered ONNX graph, in the order that lowering.py gives."""
