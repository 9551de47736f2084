"""Opsets and what each of them has, beside what onnx itself says."""

from __future__ import annotations

import pytest
from onnx import defs
from onnx.helper import VERSION_TABLE

from mixport.arithmetic.opsets import FIRST_OPSET, IR_VERSION, LAST_OPSET, STORAGE_OPSET, WIDE_CODES_OPSET


def test_ir_versions_are_those_of_the_first_release_with_each_opset() -> None:
    table: dict[int, int] = {}
    for _, ir_version, opset, *_ in VERSION_TABLE:
        table.setdefault(opset, ir_version)
    assert dict(IR_VERSION) == {opset: table[opset] for opset in range(FIRST_OPSET, LAST_OPSET + 1)}


def has_type(opset: int, kind: str) -> bool:
    """A DequantizeLinear of this opset reads codes of a type."""
    schema = defs.get_schema("DequantizeLinear", opset, "")
    return f"tensor({kind})" in schema.inputs[0].types


@pytest.mark.parametrize(("kind", "first"), [*STORAGE_OPSET.items(), ("int16", WIDE_CODES_OPSET)])
def test_types_come_with_their_opset(kind: str, first: int) -> None:
    assert has_type(first, kind)
    assert first == FIRST_OPSET or not has_type(first - 1, kind)


def test_the_axis_of_scales_comes_with_the_first_opset() -> None:
    assert "axis" in defs.get_schema("DequantizeLinear", FIRST_OPSET, "").attributes
    assert "axis" not in defs.get_schema("DequantizeLinear", FIRST_OPSET - 1, "").attributes
