"""Placeholders become standard operators: which ones, under which names, and with the same integers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from mixport.lower.expand_placeholders import ExpandPlaceholdersPass
from mixport.lower.onnx_graph import LAYER, SITE, constant_of, marked
from mixport.records.errors import InvariantError
from mixport.records.targets import Target, load_target

TARGET = load_target("ort-cpu")
WHOLE = TARGET.model_copy(update={"weights": TARGET.weights.model_copy(update={"granularity": "per-tensor"})})
HEAD = '<ir_version: 10, opset_import: ["" : 21, "mixport" : 1]>'
CODES = "-2, -1, 0, 1, 1, 0, -1, -2"


def expanded(body: str, *, inits: str = "", target: Target = TARGET) -> ir.Model:
    text = f"{HEAD} g (float[2,4] x) => (float[2,4] y) <{inits}> {{ {body} }}"
    model = ir.from_proto(onnx.parser.parse_model(text))
    result = ExpandPlaceholdersPass(target)(model)
    assert result.modified is True
    return result.model


def quantiser(low: int, high: int, *, storage: str = "uint8", zero: int = 3) -> str:
    return (
        f'y = mixport.QuantizeDequantize <site = "act", scale = 0.5, zero_point = {zero}, qmin = {low}, '
        f'qmax = {high}, storage = "{storage}"> (x)'
    )


def weight(bits: int, *, target: Target = TARGET) -> ir.Model:
    scales = "0.5, 0.5" if target is WHOLE else "0.5, 0.25"
    body = f'w = mixport.DequantizeWeight <site = "fc.weight", bits = {bits}> (c, s) y = Add(x, w)'
    inits = f"int8[2,4] c = {{{CODES}}}, float[2] s = {{{scales}}}"
    return expanded(body, inits=inits, target=target)


def chain(model: ir.Model) -> list[tuple[str, str | None]]:
    return [(n.op_type, n.outputs[0].name) for n in model.graph]


def constant(model: ir.Model, op: str, index: int) -> np.ndarray:
    (found,) = [n for n in model.graph if n.op_type == op]
    value = constant_of(found.inputs[index])
    assert value is not None
    return value


def test_codes_of_the_whole_range_need_no_clip() -> None:
    model = expanded(quantiser(0, 255))
    assert chain(model) == [("QuantizeLinear", "act"), ("DequantizeLinear", "act/dq")]
    assert marked(model.graph[0].outputs[0], SITE) == "act"
    assert model.graph.outputs[0].name == "act/dq"


@pytest.mark.parametrize(
    ("storage", "low", "high"), [("uint8", 0, 15), ("int8", -128, -113), ("int16", -9, 9)]
)
def test_codes_of_a_part_of_the_range_are_clipped_in_their_own_type(
    storage: str, low: int, high: int
) -> None:
    zero = low + 3
    model = expanded(quantiser(low, high, storage=storage, zero=zero))
    assert chain(model) == [("QuantizeLinear", "act/q"), ("Clip", "act"), ("DequantizeLinear", "act/dq")]
    assert [marked(n.outputs[0], SITE) for n in model.graph] == [None, "act", None]
    bounds = [constant(model, "Clip", index) for index in (1, 2)]
    assert [(str(bound.dtype), int(bound)) for bound in bounds] == [(storage, low), (storage, high)]
    x = np.asarray([[-9, -1, -0.25, 0], [0.25, 0.75, 3, 99]], np.float32)
    (y,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    codes = np.clip(np.rint(x / np.float32(0.5)) + zero, low, high)
    np.testing.assert_array_equal(y, (codes - zero) * np.float32(0.5))


@pytest.mark.parametrize(
    ("bits", "kind"), [(2, ir.DataType.INT2), (3, ir.DataType.INT4), (4, ir.DataType.INT4)]
)
def test_narrow_weights_are_packed_and_cast_to_int8(bits: int, kind: ir.DataType) -> None:
    model = weight(bits)
    assert chain(model)[:2] == [("Cast", "fc.weight/int8"), ("DequantizeLinear", "fc.weight/dq")]
    stored = model.graph.initializers["fc.weight"].const_value
    assert stored is not None and stored.dtype == kind
    assert stored.numpy().astype(int).tolist() == [[-2, -1, 0, 1], [1, 0, -1, -2]]
    assert model.graph[0].attributes["to"].as_int() == ir.DataType.INT8


def test_eight_bit_weights_have_a_scale_and_a_zero_point_for_each_channel() -> None:
    model = weight(8)
    assert chain(model) == [("DequantizeLinear", "fc.weight/dq"), ("Add", "y")]
    dequantiser = model.graph[0]
    assert dequantiser.attributes["axis"].as_int() == 0
    assert constant(model, "DequantizeLinear", 1).tolist() == [0.5, 0.25]
    zeros = constant(model, "DequantizeLinear", 2)
    assert (str(zeros.dtype), zeros.tolist()) == ("int8", [0, 0])
    assert marked(dequantiser.outputs[0], LAYER) == "fc"
    (y,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": np.zeros((2, 4), np.float32)})
    assert y.tolist() == [[-1, -0.5, 0, 0.5], [0.25, 0, -0.25, -0.5]]


def test_a_target_of_one_scale_a_weight_gets_scalars_and_no_axis() -> None:
    model = weight(8, target=WHOLE)
    assert "axis" not in model.graph[0].attributes
    scale, zero = (constant(model, "DequantizeLinear", index) for index in (1, 2))
    assert (scale.shape, float(scale), zero.shape, int(zero)) == ((), 0.5, (), 0)


@pytest.mark.parametrize(("target", "axis", "stored"), [(TARGET, 0, [0.5, 0.5]), (WHOLE, None, 0.5)])
def test_a_bias_is_int32_without_a_zero_point(
    target: Target, axis: int | None, stored: float | list[float]
) -> None:
    body = 'b = mixport.DequantizeBias <site = "fc.bias"> (c, s) f = Unsqueeze(b, one) y = Add(x, f)'
    inits = "int32[2] c = {70000, -3}, float[2] s = {0.5, 0.5}, int64[1] one = {1}"
    model = expanded(body, inits=inits, target=target)
    dequantiser = model.graph[0]
    assert len(dequantiser.inputs) == 2
    assert constant(model, "DequantizeLinear", 0).dtype == np.int32
    assert constant(model, "DequantizeLinear", 0).tolist() == [70000, -3]
    assert constant(model, "DequantizeLinear", 1).tolist() == stored
    found = dequantiser.attributes.get("axis")
    assert (None if found is None else found.as_int()) == axis


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            'mixport.DequantizeWeight <site = "fc.weight", bits = 8> (c, s)',
            "weight fc.weight is not constant",
        ),
        ('mixport.DequantizeBias <site = "fc.bias"> (c, s)', "bias fc.bias is not constant"),
    ],
)
def test_integers_that_are_computed_are_our_bug(body: str, message: str) -> None:
    with pytest.raises(InvariantError, match=message):
        expanded(f"c = Cast <to = 3> (x) y = {body}", inits="float[2] s = {0.5, 0.25}")


def test_tensors_of_the_exporter_get_short_names_and_the_domain_goes() -> None:
    body = "long_name = Mul(x, module_factor) other = Relu(long_name) " + quantiser(0, 255).replace(
        "(x)", "(other)"
    )
    model = expanded(body, inits="float module_factor = {2.0}")
    assert [v.name for n in model.graph for v in n.outputs] == ["t0", "t1", "act", "act/dq"]
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert sorted(model.graph.initializers) == ["act/scale", "c0", "uint8/3"]
    assert dict(model.opset_imports) == {"": 21}


def test_a_graph_without_placeholders_is_not_modified() -> None:
    text = f"{HEAD} g (float[2,4] x) => (float[2,4] y) {{ y = Relu(x) }}"
    assert ExpandPlaceholdersPass(TARGET)(ir.from_proto(onnx.parser.parse_model(text))).modified is False


def test_a_placeholder_that_is_left_breaks_the_promise() -> None:
    text = f"{HEAD} g (float[2,4] x) => (float[2,4] y) {{ y = mixport.Softmax <bits = 8> (x) }}"
    with pytest.raises(ir.passes.PostconditionError, match="placeholders left: \\['Softmax'\\]"):
        ExpandPlaceholdersPass(TARGET).ensures(ir.from_proto(onnx.parser.parse_model(text)))
