"""Operators that are lowered to several ONNX nodes, one idea a module."""
