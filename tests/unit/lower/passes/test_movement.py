"""Graph passes: ONNX text in, operator counts out, and the same values from ONNX's own reference
evaluator.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from mixport.lower.onnx_graph import SITE, UNDOES, mark
from mixport.lower.passes.movement import CancelRequantizePass, FoldPadPass, SinkDequantizePass

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'


def parse(body: str, *, shape: str = "2,4,6,6", out: str = "y", inits: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""{HEAD} agraph (float[{shape}] x) => (float[] {out})
        <float s = {{0.05}}, uint8 z = {{7}}, float s2 = {{0.1}}, uint8 z2 = {{0}},
        int16 z16 = {{0}}{inits}> {{ {body} }}"""
    )


def counts(model: onnx.ModelProto | ir.Model) -> Counter[str]:
    if isinstance(model, onnx.ModelProto):
        return Counter(n.op_type for n in model.graph.node)
    return Counter(n.op_type for n in model.graph)


def apply(model: onnx.ModelProto, *passes: type[ir.passes.InPlacePass]) -> onnx.ModelProto:
    converted = ir.from_proto(model)
    for one in passes:
        converted = one()(converted).model
    return ir.to_proto(converted)


def same_values(
    before: onnx.ModelProto, after: onnx.ModelProto, shape: tuple[int, ...] = (2, 4, 6, 6)
) -> None:
    x = np.random.default_rng(0).uniform(-1, 13, shape).astype(np.float32)
    expected = ReferenceEvaluator(before).run(None, {"x": x})[0]
    got = ReferenceEvaluator(after).run(None, {"x": x})[0]
    np.testing.assert_array_equal(got, expected)


QDQ = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"


@pytest.mark.parametrize(
    ("body", "inits"),
    [
        ("m = Transpose <perm = [0, 2, 3, 1]> (d)", ""),
        ("m = Reshape(d, shape)", ", int64[2] shape = {2, -1}"),
        (
            "m = Slice(d, a, b, c, e)",
            ", int64[1] a = {0}, int64[1] b = {6}, int64[1] c = {2}, int64[1] e = {2}",
        ),
        ("m = Pad(d, pads, zero)", ", int64[8] pads = {0, 2, 0, 0, 0, 2, 0, 0}, float zero = {0.0}"),
        ("m = Pad(d, pads)", ", int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}"),
        ('m = Pad <mode = "reflect"> (d, pads)', ", int64[8] pads = {0, 0, 1, 2, 0, 0, 3, 1}"),
        ("m = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (d)", ""),
        ("m = Concat <axis = 1> (d, d)", ""),
        ("m = Gather <axis = 1> (d, i)", ", int64 i = {1}"),
        ("m = Flatten (d)", ""),
        ("m = DepthToSpace <blocksize = 2> (d)", ""),
        ("a = Transpose <perm = [0, 2, 3, 1]> (d) m = Flatten (a)", ""),
    ],
    ids=[
        "transpose",
        "reshape",
        "slice",
        "channel pad",
        "pad without value",
        "pad by reflection",
        "max pool",
        "concat",
        "gather",
        "flatten",
        "depth to space",
        "two moves",
    ],
)
def test_codes_move_instead_of_floats(body: str, inits: str) -> None:
    before = parse(f"{QDQ} {body} y = Relu(m)", inits=inits)
    after = apply(before, SinkDequantizePass)
    assert counts(after) == counts(before)
    relu = next(n for n in after.graph.node if n.op_type == "Relu")
    producer = {o: n for n in after.graph.node for o in n.output}
    assert producer[relu.input[0]].op_type == "DequantizeLinear"
    same_values(before, after)


def test_a_graph_output_keeps_its_name() -> None:
    before = parse(f"{QDQ} y = Flatten(d)")
    after = apply(before, SinkDequantizePass)
    assert [o.name for o in after.graph.output] == ["y"]
    assert after.graph.node[-1].op_type == "DequantizeLinear"
    same_values(before, after)


def test_split_dequantises_each_part() -> None:
    before = parse(f"{QDQ} a, b = Split <axis = 1, num_outputs = 2> (d) y = Add(a, b)")
    after = apply(before, SinkDequantizePass)
    assert counts(after) == {"QuantizeLinear": 1, "Split": 1, "DequantizeLinear": 2, "Add": 1}
    same_values(before, after)


@pytest.mark.parametrize(
    "body",
    [
        (
            "q = QuantizeLinear(x, s, z16) d = DequantizeLinear(q, s, z16) m = Transpose <perm = [0, 2, "
            "3, 1]> (d)"
        ),
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
        "q2 = QuantizeLinear(x, s2, z) d2 = DequantizeLinear(q2, s2, z) m = Concat <axis = 1> (d, d2)",
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) m = Concat <axis = 1> (d, x)",
    ],
    ids=["int16", "scales differ", "one operand float"],
)
def test_floats_move_where_codes_cannot(body: str) -> None:
    before = parse(f"{body} y = Relu(m)")
    after = apply(before, SinkDequantizePass)
    assert [(n.op_type, list(n.input)) for n in after.graph.node] == [
        (n.op_type, list(n.input)) for n in before.graph.node
    ]


def test_shape_is_read_from_codes() -> None:
    before = parse(
        f"{QDQ} n = Shape <start = 0, end = 1> (d) f = Cast <to = 1> (n) r = Relu(d) y = Mul(r, f)"
    )
    after = apply(before, SinkDequantizePass)
    assert counts(after)["DequantizeLinear"] == 1
    same_values(before, after)


def test_pads_fold_into_convolutions() -> None:
    body = f"{QDQ} p = Pad(d, pads, zero) y = Conv <pads = [1, 1, 1, 1]> (p, w)"
    inits = (
        ", int64[8] pads = {0, 0, 0, 1, 0, 0, 2, 1}, float zero = {0.0}, float[1, 4, 3, 3] w = {"
        + ",".join(["0.5"] * 36)
        + "}"
    )
    before = parse(body, inits=inits)
    after = apply(before, FoldPadPass)
    assert counts(after) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "Conv": 1}
    conv = next(n for n in after.graph.node if n.op_type == "Conv")
    assert next(a.ints for a in conv.attribute if a.name == "pads") == [1, 2, 3, 2]
    same_values(before, after)


@pytest.mark.parametrize(
    ("pads", "value"),
    [
        ("0, 1, 0, 0, 0, 1, 0, 0", "0.0"),
        ("0, 0, 1, 1, 0, 0, 1, 1", "1.0"),
        ("0, 0, -1, 0, 0, 0, 0, 0", "0.0"),
    ],
    ids=["channels", "not zero", "crop"],
)
def test_other_pads_stay(pads: str, value: str) -> None:
    channels = 6 if pads.startswith("0, 1") else 4
    inits = (
        f", int64[8] pads = {{{pads}}}, float zero = {{{value}}}, float[1, {channels}, 1, 1] w = "
        f"{{{','.join(['0.5'] * channels)}}}"
    )
    before = parse(f"{QDQ} p = Pad(d, pads, zero) y = Conv (p, w)", inits=inits)
    assert counts(apply(before, FoldPadPass))["Pad"] == 1


def test_a_table_reads_codes_directly() -> None:
    before = _with_table_input(s="s", z="z")
    after = _cancelled(before, undoes=True)
    assert counts(after) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "Relu": 1}
    same_values(before, after)


def test_a_site_of_the_same_scale_stays() -> None:
    assert counts(_cancelled(_with_table_input(s="s", z="z"), undoes=False))["QuantizeLinear"] == 2


def test_a_requantisation_to_another_scale_stays() -> None:
    assert counts(_cancelled(_with_table_input(s="s2", z="z2"), undoes=True))["QuantizeLinear"] == 2


@pytest.mark.parametrize("dtype", ["z", "z16"])
def test_codes_are_transposed_and_reshaped_where_their_floats_were(dtype: str) -> None:
    """Here the Add reads the moved floats as well, so both moves stay beside those of the codes."""
    before = _moved_before_the_second_quantiser(dtype)
    after = _cancelled(before, undoes=True)
    assert counts(after) == {
        "QuantizeLinear": 1,
        "Transpose": 2,
        "Reshape": 2,
        "DequantizeLinear": 2,
        "Add": 1,
    }
    same_values(before, after)
    assert counts(_cancelled(before, undoes=False))["QuantizeLinear"] == 2


def test_codes_only_move_where_every_runtime_moves_them() -> None:
    body = f"{QDQ} m = Slice(d, a, b) q2 = QuantizeLinear(m, s, z) y = DequantizeLinear(q2, s, z)"
    before = parse(body, inits=", int64[1] a = {0}, int64[1] b = {1}")
    assert counts(_cancelled(before, undoes=True))["QuantizeLinear"] == 2


def test_a_transposed_chain_without_other_readers_leaves_no_floats() -> None:
    before = parse(
        "q = QuantizeLinear(x, s, z16) d = DequantizeLinear(q, s, z16) t = Transpose <perm = [0, 2, "
        "3, 1]> (d) "
        "q2 = QuantizeLinear(t, s, z16) y = DequantizeLinear(q2, s, z16)"
    )
    after = _cancelled(before, undoes=True)
    assert [n.op_type for n in after.graph.node] == ["QuantizeLinear", "Transpose", "DequantizeLinear"]
    same_values(before, after)


def _moved_before_the_second_quantiser(z: str) -> onnx.ModelProto:
    return parse(
        f"q = QuantizeLinear(x, s, {z}) d = DequantizeLinear(q, s, {z}) t = Transpose <perm = [0, 2, "
        "3, 1]> (d) r = Reshape(t, shape) "
        f"q2 = QuantizeLinear(r, s, {z}) d2 = DequantizeLinear(q2, s, {z}) y = Add(d2, r)",
        inits=", int64[2] shape = {-1, 4}",
    )


def _with_table_input(*, s: str, z: str) -> onnx.ModelProto:
    return parse(
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
        f"q2 = QuantizeLinear(d, {s}, {z}) d2 = DequantizeLinear(q2, {s}, {z}) y = Relu(d2)"
    )


def _cancelled(model: onnx.ModelProto, *, undoes: bool) -> onnx.ModelProto:
    """After the pass; q2 is marked as codes that undo a DequantizeLinear, or is a site."""
    converted = ir.from_proto(model)
    mark(
        next(v for n in converted.graph for v in n.outputs if v.name == "q2"),
        UNDOES if undoes else SITE,
        "q2",
    )
    return ir.to_proto(CancelRequantizePass()(converted).model)
