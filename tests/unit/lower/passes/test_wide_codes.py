"""A factor of two between a product and its 16-bit codes: where it stands, and that the codes stay."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from mixport.lower.onnx_graph import constant_of
from mixport.lower.passes.wide_codes import WideCodesPass, scale_undoing_factor

SCALE = 0.013
PRODUCTS = {"Gemm": "p = Gemm(x, w)", "MatMul": "p = MatMul(x, w)"}


def parse(body: str, *, storage: str = "int16", more: str = "") -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 21]> g (float[3,2] x) => ({storage}[3,2] y)
    <float[2,2] w = {{0.5, -1.0, 0.25, 3.0}}, float s = {{{SCALE}}}, {storage} z = {{7}}, float two = {{2.0}},
    float s2 = {{{2 * SCALE}}}{more}> {{ {body} }}"""
    return ir.from_proto(onnx.parser.parse_model(text))


def quantiser(model: ir.Model) -> ir.Node:
    (found,) = [n for n in model.graph if n.op_type == "QuantizeLinear"]
    return found


def operators(model: ir.Model) -> Counter[str]:
    return Counter(n.op_type for n in model.graph)


@pytest.mark.parametrize("storage", ["int16", "uint16"])
@pytest.mark.parametrize("op", PRODUCTS)
def test_a_product_is_doubled_and_its_scale_with_it(op: str, storage: str) -> None:
    before = parse(f"{PRODUCTS[op]} y = QuantizeLinear(p, s, z)", storage=storage)
    x = np.random.default_rng(0).normal(0, 40, (3, 2)).astype(np.float32)
    (expected,) = ReferenceEvaluator(ir.to_proto(before)).run(None, {"x": x})
    result = WideCodesPass()(before)
    assert result.modified is True
    assert [n.op_type for n in result.model.graph] == [op, "Mul", "QuantizeLinear"]
    last = quantiser(result.model)
    scale, zero = constant_of(last.inputs[1]), constant_of(last.inputs[2])
    assert scale is not None and zero is not None
    assert (scale.dtype, float(scale)) == (np.float32, float(np.float32(SCALE) * 2))
    assert (str(zero.dtype), int(zero)) == (storage, 7)
    (codes,) = ReferenceEvaluator(ir.to_proto(result.model)).run(None, {"x": x})
    np.testing.assert_array_equal(codes, expected)


def test_new_tensors_are_named_after_the_codes() -> None:
    model = WideCodesPass()(parse("p = Gemm(x, w) y = QuantizeLinear(p, s, z)")).model
    (multiply,) = [n for n in model.graph if n.op_type == "Mul"]
    assert (multiply.name, multiply.outputs[0].name) == ("y/twice", "y/twice")
    assert quantiser(model).inputs[1].name == "y/twice_scale"


def test_other_readers_of_a_product_read_it_as_it_was() -> None:
    body = "p = Gemm(x, w) y = QuantizeLinear(p, s, z) r = Relu(p)"
    model = WideCodesPass()(parse(body)).model
    (relu,) = [n for n in model.graph if n.op_type == "Relu"]
    assert relu.inputs[0].name == "p"


@pytest.mark.parametrize(
    ("body", "storage"),
    [
        ("p = Gemm(x, w) y = QuantizeLinear(p, s, z)", "uint8"),
        ("p = Gemm(x, w) y = QuantizeLinear(p, s, z)", "int8"),
        ("p = Add(x, x) y = QuantizeLinear(p, s, z)", "int16"),
        ("y = QuantizeLinear(x, s, z)", "int16"),
        ("p = Gemm(x, w) r = Relu(p) y = QuantizeLinear(r, s, z)", "int16"),
    ],
    ids=["uint8", "int8", "sum", "input", "not straight behind"],
)
def test_other_codes_are_left_alone(body: str, storage: str) -> None:
    before = parse(body, storage=storage)
    counts = operators(before)
    result = WideCodesPass()(before)
    assert (result.modified, operators(result.model)) == (False, counts)


def test_a_second_run_changes_nothing() -> None:
    model = WideCodesPass()(parse("p = Gemm(x, w) y = QuantizeLinear(p, s, z)")).model
    assert WideCodesPass()(model).modified is False


def test_a_pair_that_is_left_breaks_the_promise() -> None:
    with pytest.raises(ir.passes.PostconditionError, match="16-bit codes straight behind a product"):
        WideCodesPass().ensures(parse("p = MatMul(x, w) y = QuantizeLinear(p, s, z)"))


def test_the_site_s_scale_is_doubled_where_the_pass_has_been() -> None:
    model = WideCodesPass()(parse("p = Gemm(x, w) y = QuantizeLinear(p, s, z)")).model
    assert scale_undoing_factor(quantiser(model), np.float32(SCALE)) == np.float32(SCALE) * 2


@pytest.mark.parametrize(
    ("body", "storage"),
    [
        ("p = Gemm(x, w) m = Mul(p, two) y = QuantizeLinear(m, s, z)", "int16"),
        ("p = Gemm(x, w) m = Mul(p, two) y = QuantizeLinear(m, s2, z)", "uint8"),
        ("m = Mul(x, two) y = QuantizeLinear(m, s2, z)", "int16"),
        ("p = Gemm(x, w) m = Mul(p, three) y = QuantizeLinear(m, s2, z)", "int16"),
        ("p = Gemm(x, w) m = Mul(p, twos) y = QuantizeLinear(m, s2, z)", "int16"),
        ("p = Gemm(x, w) y = QuantizeLinear(p, s2, z)", "int16"),
    ],
    ids=["the model's own factor", "8 bits", "no product", "another factor", "a vector", "no factor"],
)
def test_elsewhere_the_site_s_scale_is_expected_as_it_is(body: str, storage: str) -> None:
    model = parse(body, storage=storage, more=", float three = {3.0}, float[2] twos = {2.0, 2.0}")
    assert scale_undoing_factor(quantiser(model), np.float32(SCALE)) == np.float32(SCALE)
