"""What a node is to the plan, from its operator and from what is known of its inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from mixport.validate.interpreter.classify import Classified, classify
from mixport.validate.interpreter.fusion import Surroundings
from mixport.validate.interpreter.graph import Node, read_graph
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.interpreter.values import Quantisation, TensorInfo

#: `root` and `sum` are the divisors that cannot be 0; `other` is any other float.
GRAPH = """<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 4] a) => (float[] other) <int64[1] axes = {1}>
{ root = Sqrt (a)
  sum = ReduceSum (a, axes)
  other = Add (a, a) }
"""
U8, I16 = np.dtype(np.uint8), np.dtype(np.int16)


def codes(low: int = 0, high: int = 255, dtype: Any = U8) -> TensorInfo:
    return TensorInfo(kind="codes", low=low, high=high, dtype=dtype)


def dequantised(scale: Any = 0.25, dtype: Any = U8) -> TensorInfo:
    scales, zero = np.asarray(scale, np.float32), np.zeros((), np.int64)
    quantisation = Quantisation(scale=scales, zero_point=zero, axis=1, explicit_zero_point=True)
    return TensorInfo(kind="dequantised", low=0, high=255, dtype=dtype, quantisation=quantisation)


FLOAT, INDEX, UNKNOWN = (TensorInfo(kind=kind) for kind in ("float", "index", "unknown"))
TABLE = TensorInfo(kind="index", low=3, high=9, dtype=U8, constant=True)


def classified(
    op: str, *infos: TensorInfo, names: str = "", constants: dict[str, Any] | None = None, **attributes: Any
) -> Classified:
    inputs = tuple(names.split()) or tuple("pqrstu"[: len(infos)])
    outputs = attributes.pop("outputs", ("y",))
    node = Node(index=9, name="n", op=op, inputs=inputs, outputs=outputs, attributes=attributes)
    around = Surroundings(
        graph=read_graph(onnx.parser.parse_model(GRAPH)),
        tensors=dict(zip(inputs, infos, strict=True)),
        constants={name: np.asarray(value) for name, value in (constants or {}).items()},
    )
    return classify(node, around)


@pytest.mark.parametrize(
    ("found", "how", "kind"),
    [
        (classified("Shape", UNKNOWN), "shape", "index"),
        (classified("Range", INDEX, INDEX, INDEX), "source", "index"),
        (classified("ConstantOfShape", INDEX), "source", "float"),
        (classified("ConstantOfShape", INDEX, value=np.zeros(1, np.int64)), "source", "index"),
        (classified("Reshape", codes(), INDEX), "move", "codes"),
        (classified("Reshape", UNKNOWN, INDEX), "move", "unknown"),
        (classified("Slice", FLOAT, UNKNOWN, INDEX), "move", "unknown"),
        (classified("Transpose", dequantised()), "move", "dequantised"),
        (classified("Gather", dequantised(), INDEX), "move", "float"),
        (classified("Transpose", dequantised([0.5, 0.25])), "move", "float"),
        (classified("Concat", INDEX, INDEX), "join", "index"),
        (classified("Concat", FLOAT, INDEX), "join", "float"),
        (classified("Concat", codes(), UNKNOWN), "join", "unknown"),
        (classified("Add", INDEX, INDEX), "elementwise", "index"),
        (classified("Add", dequantised(), INDEX), "elementwise", "float"),
        (classified("Add", UNKNOWN, codes()), "elementwise", "unknown"),
        (classified("Greater", FLOAT, FLOAT), "elementwise", "index"),
        (classified("Where", FLOAT, INDEX, INDEX), "elementwise", "index"),
        (classified("ReduceMax", UNKNOWN), "elementwise", "unknown"),
        (classified("ReduceMax", FLOAT), "elementwise", "float"),
    ],
)
def test_kinds_follow_the_inputs(found: Classified, how: str, kind: str) -> None:
    assert (found.how, found.info.kind, found.reason, found.site) == (how, kind, "", False)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (classified("Softmax", FLOAT), "Softmax is not bit-portable"),
        (classified("a::Thing", FLOAT), "a::Thing is not bit-portable"),
        (classified("MaxPool", codes(), outputs=("y", "places")), "places of its maxima"),
        (classified("Add", codes(), codes()), "Add on codes is not part of the lowered forms"),
        (classified("Cast", FLOAT, to=onnx.TensorProto.FLOAT16), "Cast to ONNX type 10"),
        (classified("Abs", TensorInfo(kind="float", dtype=np.dtype(np.float16))), "other than float32"),
        (classified("ReduceSum", FLOAT, INDEX), "axes that are not constant"),
        (classified("ReduceSum", FLOAT, INDEX, constants={"q": [1]}), "the order of a float sum matters"),
        (classified("Div", FLOAT, FLOAT, names="a other"), "division by a value that may be 0"),
    ],
)
def test_islands_say_why(found: Classified, reason: str) -> None:
    assert found.how == "island" and found.info == UNKNOWN and reason in found.reason


@pytest.mark.parametrize("divisor", ["root", "sum"])
def test_roots_and_sums_may_divide(divisor: str) -> None:
    assert classified("Div", FLOAT, FLOAT, names=f"a {divisor}").how == "elementwise"
    constant = TensorInfo(kind="float", constant=True)
    assert classified("Div", FLOAT, constant, names="a other").how == "elementwise"


def test_a_table_is_a_site_with_the_table_s_range() -> None:
    for op in ("Gather", "GatherElements"):
        found = classified(op, TABLE, INDEX)
        assert (found.how, found.site, found.info) == ("move", True, codes(3, 9))
    assert not classified("Gather", TABLE, TensorInfo(kind="index", constant=True)).site


@pytest.mark.parametrize(
    ("found", "low", "high"),
    [
        (classified("Concat", codes(3, 9), codes(7, 20)), 3, 20),
        (classified("Pad", codes(90, 110), INDEX, codes(200, 200)), 90, 200),
        (classified("Pad", codes(90, 110), INDEX), 0, 110),
        (classified("Pad", codes(90, 110), INDEX, mode="reflect"), 90, 110),
        (classified("Clip", codes(5, 100), INDEX, INDEX, constants={"q": 0, "r": 15}), 5, 15),
        (classified("ReduceMax", codes(5, 100)), 5, 100),
    ],
)
def test_ranges_of_codes_are_carried(found: Classified, low: int, high: int) -> None:
    assert found.info == codes(low, high)


def test_casts_and_products_of_codes_are_integers_in_a_range() -> None:
    cast = classified("Cast", codes(-3, 200, I16), to=onnx.TensorProto.FLOAT).info
    assert cast == TensorInfo(kind="float", low=-3, high=200, integers=True)
    assert classified("Cast", FLOAT, to=onnx.TensorProto.DOUBLE).info == FLOAT
    product = classified("Mul", cast, cast).info
    assert (product.low, product.high, product.integers) == (-600, 40000, True)
    assert classified("Mul", cast, FLOAT).info == FLOAT
    assert classified("ReduceSum", product, INDEX, constants={"q": [1]}).how == "elementwise"


def test_sums_of_dequantised_codes_need_one_power_of_two() -> None:
    infos = (dequantised(2.0**-8), dequantised(0.3), dequantised(2.0**-8, I16), dequantised([0.5, 0.25]))
    found = [classified("ReduceSum", info, INDEX, constants={"q": [1]}).how for info in infos]
    assert found == ["elementwise", "island", "island", "island"]


def test_a_pad_with_axes_and_no_filler_gives_zeros() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (uint8[2, 3] x) => (uint8[2, 5] y)
        <uint8 low = {90}, uint8 high = {110}, int64[2] pads = {1, 1}, int64[1] axes = {1}>
        { c = Clip(x, low, high) y = Pad(c, pads, , axes) }"""
    )
    info = Interpreter(model).plan.tensors["y"]
    assert (info.low, info.high) == (0, 110)
