"""Reshapes in a row: ONNX text in, operator counts and values out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from mixport.lower.onnx_graph import SITE, mark
from mixport.lower.passes.reshapes import JoinReshapesPass

INITS = (
    "int64[2] rows = {-1, 4}, int64[1] flat = {-1}, int64[4] same = {0, 0, 0, 0}, int64[3] three = {2, "
    "-1, 4}, int64[1] last = {3}"
)


def joined(body: str, *, site: str = "") -> onnx.ModelProto:
    text = (
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[2,3,5,4] x) => (float[] y) <{INITS}> {{ '
        f"{body} }}"
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    for value in (v for n in model.graph for v in n.outputs):
        if value.name == site:
            mark(value, SITE, site)
    return ir.to_proto(JoinReshapesPass()(model).model)


def outcome(model: onnx.ModelProto) -> tuple[Counter[str], np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.arange(120, dtype=np.float32).reshape(2, 3, 5, 4)
    return Counter(n.op_type for n in model.graph.node), session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("body", "counts", "shape"),
    [
        ("a = Reshape(x, rows) b = Reshape(a, flat) y = Reshape(b, three)", {"Reshape": 1}, (2, 15, 4)),
        ("a = Unsqueeze(x, last) b = Flatten(a) y = Reshape(b, rows)", {"Reshape": 1}, (30, 4)),
        ("a = Reshape(x, three) n = Neg(a) y = Reshape(n, flat)", {"Reshape": 2, "Neg": 1}, (120,)),
    ],
)
def test_only_the_last_one_stays(body: str, counts: dict[str, int], shape: tuple[int, ...]) -> None:
    found, y = outcome(joined(body))
    assert found == counts
    assert y.shape == shape
    np.testing.assert_array_equal(np.abs(y).reshape(-1), np.arange(120))


def test_sizes_copied_from_the_input_need_it() -> None:
    found, y = outcome(
        joined("a = Transpose <perm = [0, 2, 1, 3]> (x) b = Reshape(a, same) y = Reshape(b, rows)")
    )
    assert found == {"Transpose": 1, "Reshape": 1}
    assert y.shape == (30, 4)
    found, _ = outcome(joined("a = Reshape(x, three) b = Unsqueeze(a, last) y = Reshape(b, same)"))
    assert found == {"Reshape": 2, "Unsqueeze": 1}


def test_codes_of_a_site_keep_their_shape() -> None:
    found, _ = outcome(
        joined("a = Reshape(x, three) b = Reshape(a, flat) s = Identity(b) y = Reshape(s, rows)")
    )
    assert found["Reshape"] == 2
    model = joined("a = Reshape(x, three) y = Reshape(a, flat)", site="a")
    assert [n.op_type for n in model.graph.node] == ["Reshape", "Reshape"]
