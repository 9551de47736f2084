"""ONNX opsets that files are written with: the IR version of each, and the first with what a file may need.

Sources: onnx/docs/Versioning.md, as onnx.helper.VERSION_TABLE has it, and the change logs of
QuantizeLinear and DequantizeLinear (onnx/docs/Changelog.md): 13 brought the axis of scales, 21 codes of 16
bits and INT4, 25 INT2.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

FIRST_OPSET, LAST_OPSET = 13, 26

IR_VERSION: Mapping[int, int] = MappingProxyType(
    {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13}
)
"""IR version that first came with each opset: a file's own."""

STORAGE_OPSET: Mapping[str, int] = MappingProxyType({"int8": 13, "int4": 21, "int2": 25})
"""First opset in which a DequantizeLinear, or a Cast, reads weights of a type."""

WIDE_CODES_OPSET = 21
"""First opset with a zero point of 16 bits."""
