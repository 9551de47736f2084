"""Forms that older opsets read."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from mixport.lower.passes.older_forms import OlderFormsPass
from mixport.records.targets import load_target


def changed(body: str, *, inits: str = "", target: str = "onnx-opset17") -> tuple[bool, ir.Model]:
    text = f"""<ir_version: 9, opset_import: ["" : 21]>
    g (float[2,3,4] x) => (float[2,12] y) <{inits}> {{ {body} }}"""
    result = OlderFormsPass(load_target(target))(ir.from_proto(onnx.parser.parse_model(text)))
    return result.modified, result.model


@pytest.mark.parametrize("target", ["ort-cpu", "onnx-opset13"])
@pytest.mark.parametrize(
    ("sizes", "left"),
    [("int64[2] n = {-1, 12}", set()), ("int64[2] n = {0, 12}", {"allowzero"})],
)
def test_allowzero_goes_where_no_size_is_0(sizes: str, left: set[str], target: str) -> None:
    modified, model = changed("y = Reshape <allowzero = 1> (x, n)", inits=sizes, target=target)
    assert (modified, set(model.graph[0].attributes)) == (not left, left)


def test_sizes_that_the_graph_computes_keep_allowzero() -> None:
    modified, model = changed("n = Shape(x) y = Reshape <allowzero = 1> (x, n)")
    assert not modified and set(model.graph[1].attributes) == {"allowzero"}


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMean", "ReduceMin"])
def test_axes_are_an_attribute_before_18(op: str) -> None:
    body = f"m = {op} <keepdims = 1> (x, a) r = Sub(x, m) y = Flatten(r)"
    modified, model = changed(body, inits="int64[1] a = {-1}")
    node = model.graph[0]
    assert modified and len(node.inputs) == 1
    assert list(node.attributes["axes"].as_ints()) == [-1] and node.attributes["keepdims"].as_int() == 1
    model.opset_imports[""] = 17
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize(
    ("op", "target"),
    [("ReduceMax", "onnx-int8"), ("ReduceSum", "onnx-opset17"), ("ReduceSum", "onnx-opset13")],
)
def test_axes_stay_an_input_where_they_are_one(op: str, target: str) -> None:
    body = f"m = {op}(x, a) r = Sub(x, m) y = Flatten(r)"
    modified, model = changed(body, inits="int64[1] a = {-1}", target=target)
    assert not modified and len(model.graph[0].inputs) == 2
