"""Movement in units of its own: ONNX text in, operator counts and the same values out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from mixport.lower.passes.own_units import MovesInOwnUnitsPass

QDQ = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"


def parse(body: str, *, inits: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]> agraph (float[2,4,6,6] x) => (float[] y)
        <float s = {{0.05}}, uint8 z = {{7}}, float s2 = {{0.1}}, int16 z16 = {{0}}{inits}> {{ {body} }}"""
    )


def applied(before: onnx.ModelProto) -> onnx.ModelProto:
    return ir.to_proto(MovesInOwnUnitsPass()(ir.from_proto(before)).model)


def counts(model: onnx.ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


def same_values(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    x = np.random.default_rng(0).uniform(-1, 13, (2, 4, 6, 6)).astype(np.float32)
    expected, got = (ReferenceEvaluator(one).run(None, {"x": x})[0] for one in (before, after))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("body", "inits", "units"),
    [
        ("m = Transpose <perm = [0, 2, 3, 1]> (d)", "", 1),
        ("m = Reshape(d, shape)", ", int64[2] shape = {2, -1}", 1),
        (
            "m = Slice(d, a, b, c, e)",
            ", int64[1] a = {0}, int64[1] b = {6}, int64[1] c = {2}, int64[1] e = {2}",
            1,
        ),
        ("m = Pad(d, pads, zero)", ", int64[8] pads = {0, 2, 0, 0, 0, 2, 0, 0}, float zero = {0.0}", 1),
        ("m = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (d)", "", 1),
        ("m = Concat <axis = 1> (d, d)", "", 1),
        ("m = DepthToSpace <blocksize = 2> (d)", "", 1),
        ("a = Transpose <perm = [0, 2, 3, 1]> (d) m = Flatten (a)", "", 2),
    ],
    ids=["transpose", "reshape", "slice", "pad", "max pool", "concat", "depth to space", "two moves"],
)
def test_each_move_stands_between_quantisers(body: str, inits: str, units: int) -> None:
    before = parse(f"{QDQ} {body} y = Relu(m)", inits=inits)
    after = applied(before)
    added = Counter({"QuantizeLinear": units, "DequantizeLinear": units})
    assert counts(after) == counts(before) + added
    producer = {o: n for n in after.graph.node for o in n.output}
    relu = next(n for n in after.graph.node if n.op_type == "Relu")
    reader = producer[relu.input[0]]
    for _ in range(units):
        assert reader.op_type == "DequantizeLinear"
        quantiser = producer[reader.input[0]]
        assert quantiser.op_type == "QuantizeLinear" and list(quantiser.input[1:]) == ["s", "z"]
        move = producer[quantiser.input[0]]
        reader = producer[move.input[0]]
    assert reader.output[0] == "d"
    same_values(before, after)


def test_every_part_of_a_split_is_quantised() -> None:
    before = parse(f"{QDQ} a, b = Split <axis = 1, num_outputs = 2> (d) y = Add(a, b)")
    after = applied(before)
    assert counts(after) == {"QuantizeLinear": 3, "Split": 1, "DequantizeLinear": 3, "Add": 1}
    same_values(before, after)


def test_a_graph_output_keeps_its_name() -> None:
    before = parse(f"{QDQ} y = Flatten(d)")
    after = applied(before)
    assert [o.name for o in after.graph.output] == ["y"]
    assert after.graph.node[-1].op_type == "DequantizeLinear"
    same_values(before, after)


@pytest.mark.parametrize(
    "body",
    [
        "q = QuantizeLinear(x, s, z16) d = DequantizeLinear(q, s, z16) m = Flatten(d)",
        f"{QDQ} q2 = QuantizeLinear(x, s2, z) d2 = DequantizeLinear(q2, s2, z) m = Concat <axis = 1> (d, d2)",
        f"{QDQ} m = Concat <axis = 1> (d, x)",
        "m = Flatten(x)",
    ],
    ids=["int16", "scales differ", "one operand float", "floats"],
)
def test_other_movement_stays(body: str) -> None:
    before = parse(f"{body} y = Relu(m)")
    assert counts(applied(before)) == counts(before)
