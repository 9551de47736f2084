"""Lower: from a quantised program to an ONNX QDQ graph with packed integer weights."""

from __future__ import annotations

from mixport.lower.lowering import lower, read_lowered

__all__ = ["lower", "read_lowered"]
