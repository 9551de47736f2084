"""The codes of a table are named behind what undoes its flattening."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from mixport.validate.interpreter.flattened_codes import unflattened
from mixport.validate.interpreter.graph import read_graph

HEAD = """<ir_version: 10, opset_import: ["" : 21]>
g (uint8[1, 2, 3, 4] x) => (uint8[n] y, uint8[m] more)
<int64[1] flat = {-1}, int64[4] last = {1, 3, 4, 2}, int64[4] first = {1, 2, 3, 4}>
"""
TABLE = "i = Cast <to = 6> (f) e = GatherElements(t, i)"


def named(body: str) -> str:
    model = onnx.parser.parse_model(f"{HEAD} {{ {body} }}")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(256, dtype=np.uint8), "t"))
    graph = read_graph(model)
    (table,) = (node for node in graph.nodes if node.op.startswith("Gather"))
    return unflattened(table, graph)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"f = Reshape(x, flat) {TABLE} y = Reshape(e, first) more = Identity(x)", "y"),
        (
            f"l = Transpose <perm = [0, 2, 3, 1]> (x) f = Reshape(l, flat) {TABLE} s = Reshape(e, last) "
            "y = Transpose <perm = [0, 3, 1, 2]> (s) more = Identity(x)",
            "y",
        ),
        (
            f"l = Transpose <perm = [0, 2, 3, 1]> (x) f = Reshape(l, flat) {TABLE} s = Reshape(e, last) "
            "y = Transpose <perm = [0, 2, 3, 1]> (s) more = Identity(x)",
            "s",
        ),
        (f"f = Reshape(x, flat) {TABLE} y = Reshape(e, first) more = Identity(e)", "e"),
        ("i = Cast <to = 6> (x) e = Gather(t, i) y = Identity(e) more = Identity(x)", "e"),
    ],
    ids=["flat", "channels last", "turned another way", "two readers", "a Gather"],
)
def test_codes_have_the_name_behind_the_movement(body: str, expected: str) -> None:
    assert named(body) == expected
