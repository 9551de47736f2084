"""Types by inference, and the sums of integers that a float type holds: exactly up to its limit."""

from __future__ import annotations

import onnx
import pytest

from mixport.validate.conformance.tensor_types import TensorTypes, tensor_types
from mixport.validate.interpreter.graph import read_graph

#: A sum of codes along the last axis; CODES, SIZE, BODY and FLOAT differ.
SUM = """<ir_version: 10, opset_import: ["" : 21]>
g (CODES[N, SIZE] x) => (FLOAT[] y) <int64[1] axes = {-1}, float scale = {SCALE}, uint8 zero = {ZERO}>
{ BODY
  y = ReduceSum <keepdims = 1> (d, axes) }
"""
CAST = {"float": "d = Cast <to = 1> (x)", "double": "d = Cast <to = 11> (x)"}
SQUARE = {
    "float": "w = Cast <to = 1> (x)\n d = Mul (w, w)",
    "double": "w = Cast <to = 11> (x)\n d = Mul (w, w)",
}
DEQUANTISED = "d = DequantizeLinear (x, scale, zero)"


def types_of(
    body: str,
    *,
    codes: str = "uint8",
    size: int | str = 64,
    kind: str = "float",
    scale: str = "0.25",
    zero: int = 0,
) -> TensorTypes:
    text = SUM.replace("CODES", codes).replace("SIZE", str(size)).replace("BODY", body)
    text = text.replace("FLOAT", kind).replace("SCALE", scale).replace("ZERO", str(zero))
    return tensor_types(read_graph(onnx.parser.parse_model(text)))


def exact(types: TensorTypes) -> bool:
    return types.exact_sum(types.graph.producer["y"])


def test_types_and_shapes_are_those_of_onnx() -> None:
    types = types_of(CAST["double"], codes="int16", kind="double")
    assert [types.dtype(name) for name in ("x", "d", "y", "axes", "scale")] == [
        "int16",
        "float64",
        "float64",
        "int64",
        "float32",
    ]
    assert types.dtype("nobody") == ""
    assert types.shapes["x"] == (None, 64) and types.shapes["y"] == (None, 1)
    assert types.shapes["axes"] == (1,)


def test_a_given_input_shape_takes_the_place_of_the_symbolic_one() -> None:
    graph = types_of(CAST["float"], size="M").graph
    types = tensor_types(graph, input_shape=(5, 7))
    assert types.shapes["d"] == (5, 7) and types.shapes["y"] == (5, 1)
    # The file itself stays as it was.
    assert graph.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


@pytest.mark.parametrize(
    ("codes", "kind", "square", "largest"),
    [
        ("uint8", "float", False, 2**24 // 255),
        ("int16", "float", False, 2**24 // 2**15),
        ("int16", "double", True, 2**53 // 2**30),
        ("uint16", "double", True, 2**53 // 65535**2),
    ],
)
def test_the_limit_is_exact(codes: str, kind: str, square: bool, largest: int) -> None:
    body = (SQUARE if square else CAST)[kind]
    assert exact(types_of(body, codes=codes, kind=kind, size=largest))
    assert not exact(types_of(body, codes=codes, kind=kind, size=largest + 1))


def test_codes_behind_a_power_of_two_are_multiples_of_it() -> None:
    # With zero point 128 the largest distance is 128 codes, with 0 it is 255.
    assert exact(types_of(DEQUANTISED, size=2**24 // 255))
    assert not exact(types_of(DEQUANTISED, size=2**24 // 255 + 1))
    assert exact(types_of(DEQUANTISED, size=2**24 // 128, zero=128))
    assert not exact(types_of(DEQUANTISED, size=2**24 // 128 + 1, zero=128))


@pytest.mark.parametrize("scale", ["0.3", "0.75"])
def test_other_scales_are_no_integers(scale: str) -> None:
    assert not exact(types_of(DEQUANTISED, size=2, scale=scale))


def test_a_symbolic_length_proves_nothing() -> None:
    assert not exact(types_of(CAST["float"], size="M"))


def test_floats_of_an_unknown_kind_prove_nothing() -> None:
    body = "c = Cast <to = 1> (x)\n d = Sqrt (c)"
    assert not exact(types_of(body, size=2))


def test_empty_axes_are_every_axis() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (uint8[8388608, 4] x) => (float[1, 1] y) <int64[0] axes = {}>
        { c = Cast <to = 1> (x) y = ReduceSum(c, axes) }"""
    )
    graph = read_graph(model)
    types = tensor_types(graph)
    assert not types.exact_sum(graph.producer["y"])
