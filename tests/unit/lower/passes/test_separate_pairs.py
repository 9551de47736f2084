"""Quantisers in a row: what onnxruntime makes of a file must give the codes that the file says, whatever
vanishes in between.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from mixport.lower.passes.separate_pairs import SeparatePairsPass
from tests.unit.lower.passes.test_movement import parse

LEVELS = ("ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
INITS = (
    ", float one = {1.0}, float nothing = {0.0}, float[1,1,1,1] ones = {1.0}, float[6,1] many = "
    "{1.0,1.0,1.0,1.0,1.0,1.0}"
    ", int64[4] same = {1,1,1,1}, int64[3] flat = {-1,4,36}"
)
IN_FLOAT = {
    "nothing": "f = Identity(d)",
    "times 1": "f = Mul(d, one)",
    "1 times, four axes": "f = Mul(ones, d)",
    "times 1 a row": "f = Mul(d, many)",
    "plus 0": "f = Add(d, nothing)",
    "minus 0": "f = Sub(d, nothing)",
    "by 1": "f = Div(d, one)",
    "affine": "e = Mul(d, one) f = Add(nothing, e)",
    "expanded": "f = Expand(d, same)",
}
ON_CODES = {
    "nothing": ("", "q", "", "w"),
    "identity": ("k = Identity(q)", "k", "", "w"),
    "transposed and back": (
        "k = Transpose <perm = [0, 2, 3, 1]> (q)",
        "k",
        "v = Transpose <perm = [0, 3, 1, 2]> (w)",
        "v",
    ),
    "expanded": ("k = Expand(q, same)", "k", "", "w"),
    "reshaped": ("k = Reshape(q, flat)", "k", "", "w"),
}


def pairs(
    *, on_codes: str = "nothing", in_float: str = "nothing", first: str = "s, z", second: str = "s2, z2"
) -> onnx.ModelProto:
    before, codes, after, result = ON_CODES[on_codes]
    body = f"""q = QuantizeLinear(x, {first}) {before} d = DequantizeLinear({codes}, {first})
    {IN_FLOAT[in_float]}
        w = QuantizeLinear(f, {second}) {after} y = DequantizeLinear({result}, {second})"""
    return parse(body, inits=INITS)


def separated(model: onnx.ModelProto) -> onnx.ModelProto:
    result = SeparatePairsPass()(ir.from_proto(model))
    return ir.to_proto(result.model)


def clips(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Clip" for node in model.graph.node)


def run(model: onnx.ModelProto, level: str) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).uniform(-1, 13, (2, 4, 6, 6)).astype(np.float32)
    return session.run(None, {"x": x})[0]


def test_onnxruntime_merges_pairs_of_unequal_scales() -> None:
    """The hazard itself: where this fails, the pass can go."""
    model = pairs()
    merged, written = run(model, "ORT_ENABLE_BASIC"), run(model, "ORT_DISABLE_ALL")
    assert (merged != written).any()


@pytest.mark.parametrize(
    ("on_codes", "in_float"),
    [pair for pair in product(ON_CODES, IN_FLOAT) if pair != ("reshaped", "times 1 a row")],
)
def test_the_codes_are_those_that_the_file_says(on_codes: str, in_float: str) -> None:
    model = separated(pairs(on_codes=on_codes, in_float=in_float))
    expected = run(pairs(on_codes=on_codes, in_float=in_float), "ORT_DISABLE_ALL")
    for level in LEVELS:
        np.testing.assert_array_equal(run(model, level), expected)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (pairs(), 1),
        (pairs(in_float="affine"), 1),
        (pairs(on_codes="transposed and back"), 1),
        (pairs(on_codes="reshaped"), 0),
        (pairs(second="s, z"), 0),
        (
            parse(
                "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = QuantizeLinear(d, s2, "
                "z16) y = DequantizeLinear(w, s2, z16)"
            ),
            0,
        ),
        (
            parse(
                "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = QuantizeLinear(d, s2, "
                "z2) e = DequantizeLinear(w, s2, z2)"
                " y = Add(d, e)"
            ),
            0,
        ),
        (
            parse(
                "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) w = QuantizeLinear(d, s2, "
                "z2) e = DequantizeLinear(w, s2, z2)"
                " v = QuantizeLinear(d, s2, z2) f = DequantizeLinear(v, s2, z2) y = Add(f, e)"
            ),
            1,
        ),
    ],
    ids=[
        "plain",
        "affine",
        "transposed",
        "reshaped",
        "equal",
        "of two types",
        "with another reader",
        "twice the same",
    ],
)
def test_a_clip_stands_only_where_a_runtime_would_merge(model: onnx.ModelProto, expected: int) -> None:
    assert clips(separated(model)) == expected


def test_the_codes_keep_their_name() -> None:
    model = separated(pairs())
    (clip,) = (node for node in model.graph.node if node.op_type == "Clip")
    assert (list(clip.input), list(clip.output)) == (["q/q", "uint8/0", "uint8/255"], ["q"])


def test_pairs_that_no_clip_can_part_are_refused() -> None:
    """16-bit codes: no integer Clip takes them."""
    body = (
        "q = QuantizeLinear(x, s, z16) d = DequantizeLinear(q, s, z16) w = QuantizeLinear(d, s2, z16) y "
        "= DequantizeLinear(w, s2, z16)"
    )
    with pytest.raises(ir.passes.PostconditionError, match="quantisers q and w stand in a row"):
        separated(parse(body))
