"""mixport: a float vision model in, a validated low-bit ONNX bundle out."""

from __future__ import annotations

__version__ = "0.1.0"
