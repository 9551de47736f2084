"""Nodes that a file's opset does not have are found by operator, attribute, input and type."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from mixport.lower.opset_check import NewerForm, newer_forms, require_opset
from mixport.records.errors import TargetError
from mixport.records.targets import load_target


def parse(body: str, *, opset: int, inits: str = "float s = {0.5}, uint8 z = {3}") -> onnx.ModelProto:
    text = (
        f"""<ir_version: 8, opset_import: ["" : {opset}]> g (float[2,3,4] x) => (y) <{inits}> {{ {body} }}"""
    )
    return onnx.parser.parse_model(text)


PLAIN = "q = QuantizeLinear(x, s, z) m = MaxPool <kernel_shape = [1]> (q) y = DequantizeLinear(m, s, z)"


@pytest.mark.parametrize("opset", [13, 17, 19, 21, 25])
def test_eight_bits_are_in_every_opset(opset: int) -> None:
    assert list(newer_forms(parse(PLAIN, opset=opset))) == []


@pytest.mark.parametrize(
    ("opset", "body", "inits", "what", "since"),
    [
        (17, "y = Gelu(x)", "", "operator Gelu", 20),
        (13, "y = HardSwish(x)", "", "operator HardSwish", 14),
        (16, "y = LayerNormalization(x, g)", "float[4] g = {1, 1, 1, 1}", "operator LayerNormalization", 17),
        (13, "y = Reshape <allowzero = 1> (x, n)", "int64[1] n = {-1}", "attribute allowzero of Reshape", 14),
        (17, "y = ReduceMax(x, a)", "int64[1] a = {-1}", "input 2 of ReduceMax", 18),
        (
            19,
            "c = Relu(x) q = QuantizeLinear(c, s, z) y = DequantizeLinear(q, s, z)",
            "float s = {0.5}, int16 z = {0}",
            "QuantizeLinear that reads z of type int16",
            21,
        ),
        (
            20,
            "c = Cast <to = 3> (w) y = DequantizeLinear(c, s)",
            "int4[2] w = {1, -1}, float s = {0.5}",
            "Cast that reads w of type int4",
            21,
        ),
        (
            19,
            "y = DequantizeLinear <axis = 0, block_size = 2> (w, s)",
            "int8[4] w = {1, -1, 0, 2}, float[2] s = {0.5, 0.25}",
            "attribute block_size of DequantizeLinear",
            21,
        ),
        (
            13,
            "q = QuantizeLinear(x, s, z) a = Add(q, q) y = DequantizeLinear(a, s, z)",
            "float s = {0.5}, uint8 z = {3}",
            "Add that reads q of type uint8",
            14,
        ),
    ],
)
def test_what_is_newer_is_named_with_the_opset_that_brought_it(
    opset: int, body: str, inits: str, what: str, since: int
) -> None:
    found = list(newer_forms(parse(body, opset=opset, inits=inits)))
    assert (found[0].what, found[0].since) == (what, since)
    assert list(newer_forms(parse(body, opset=since, inits=inits))) == []


def test_an_operator_that_no_opset_has_is_told_too() -> None:
    (found,) = newer_forms(parse("y = Teapot(x)", opset=17))
    assert found == NewerForm(node="y", what="operator Teapot", since=None)


def test_other_domains_are_passed_over() -> None:
    model = parse("y = Relu(x)", opset=13)
    model.graph.node[0].domain = "somewhere.else"
    model.opset_import.add(domain="somewhere.else", version=1)
    assert list(newer_forms(model)) == []


def test_a_file_is_refused_by_its_first_node() -> None:
    target = load_target("onnx-opset17")
    require_opset(parse(PLAIN, opset=17), target)
    model = parse("a = Gelu(x) b = Relu(a) y = Gelu(b)", opset=17)
    model.graph.node[0].name = "block/Gelu"
    with pytest.raises(TargetError) as caught:
        require_opset(model, target)
    assert str(caught.value) == (
        "target onnx-opset17: graph.opset 17 does not have what the model needs: node block/Gelu: operator "
        "Gelu, which came with opset 20 (1 more)"
    )
    assert caught.value.hint == "a target with graph.opset 20 or more: --target onnx-int8"
