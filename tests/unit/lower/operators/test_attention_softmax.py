"""Numerators as nodes: which ones, and the codes that the definition gives."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from mixport.arithmetic.attention_softmax import choose_exponent, numerators
from mixport.lower.onnx_graph import UNDOES, constant_of, marked, remove_dead
from mixport.lower.operators.attention_softmax import expand_numerators, gives_exponents
from mixport.lower.passes.movement import CancelRequantizePass

SCALE, BITS = 0.0625, 8


def expanded(step: float, *, storage: str = "uint8") -> ir.Model:
    """Codes of scores, their numerators, and the codes of these."""
    zero = 130 if storage == "uint8" else 2
    text = f"""<ir_version: 10, opset_import: ["" : 21, "mixport" : 1]>
    g (float[N,5] x) => (uint8[N,5] n, {storage}[N,5] q)
    <float s = {{{SCALE}}}, {storage} z = {{{zero}}}, float ns = {{{2.0**-BITS}}}, uint8 nz = {{0}}> {{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    e = mixport.Numerators <name = "attn", scale = {SCALE}, zero_point = {zero}, step = {step!r},
        storage = "{storage}"> (d)
    n = QuantizeLinear(e, ns, nz) }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    (old,) = [n for n in model.graph if n.op_type == "Numerators"]
    expand_numerators(model.graph, old)
    model.graph.remove(old, safe=True)
    model.opset_imports.pop("mixport")
    return model


def own(model: ir.Model) -> list[ir.Node]:
    return [n for n in model.graph if (n.name or "").startswith("attn/")]


def test_two_dequantisers_a_maximum_a_difference_and_one_exponential() -> None:
    made = own(expanded(0.25))
    assert [n.name for n in made] == [
        "attn/0.QuantizeLinear",
        "attn/1.DequantizeLinear",
        "attn/2.ReduceMax",
        "attn/3.DequantizeLinear",
        "attn/4.Sub",
        "attn/5.Exp",
    ]
    quantiser, exponents, largest, below, difference, _ = made
    assert marked(quantiser.outputs[0], UNDOES) == "attn"
    assert largest.inputs[0] is exponents.inputs[0] is quantiser.outputs[0]
    assert list(difference.inputs) == [exponents.outputs[0], below.outputs[0]]
    assert largest.attributes["keepdims"].as_int() == 1
    axes = constant_of(largest.inputs[1])
    assert axes is not None and axes.tolist() == [-1]


def test_codes_are_made_with_the_scale_and_read_with_the_step() -> None:
    quantiser, exponents, _, below, _, _ = own(expanded(0.25))
    scales = [constant_of(n.inputs[1]) for n in (quantiser, exponents, below)]
    zeros = [constant_of(n.inputs[2]) for n in (quantiser, exponents, below)]
    assert [float(scale) for scale in scales if scale is not None] == [SCALE, 0.25, 0.25]
    assert [(str(zero.dtype), int(zero)) for zero in zeros if zero is not None] == [("uint8", 130)] * 3


@pytest.mark.parametrize("storage", ["uint8", "int8"])
@pytest.mark.parametrize("wanted", [0.004, 0.0625, 0.7])
def test_the_file_gives_the_numerators_of_the_definition(wanted: float, storage: str) -> None:
    exponent = choose_exponent(wanted, bits=BITS)
    assert exponent is not None
    model = CancelRequantizePass()(expanded(exponent.step, storage=storage)).model
    remove_dead(model.graph)
    # The scores' own codes are read: nothing is dequantised only to be quantised again.
    assert sum(n.op_type == "QuantizeLinear" for n in model.graph) == 2
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(0).uniform(-9, 9, (64, 5)).astype(np.float32)
    x[0] = -3.0
    n, q = session.run(["n", "q"], {"x": x})
    np.testing.assert_array_equal(n, numerators(q, exponent))
    assert n[0].tolist() == [2**BITS - 1] * 5


def test_only_scores_that_an_exponential_reads_have_a_step_of_their_own() -> None:
    made = own(expanded(0.25))
    assert [gives_exponents(n) for n in made if n.op_type == "DequantizeLinear"] == [True, True]


@pytest.mark.parametrize(
    "body",
    ["y = Relu(d)", "e = Sub(d, x) y = Relu(e)", "e = Sub(d, x) f = Exp(e) y = Add(f, d)", "y = Relu(x)"],
    ids=["no difference", "no exponential", "another reader", "no reader"],
)
def test_other_dequantisers_have_the_scale_of_their_site(body: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y)
    <float s = {{0.5}}, uint8 z = {{0}}>
    {{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) {body} }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    (dequantiser,) = [n for n in model.graph if n.op_type == "DequantizeLinear"]
    assert gives_exponents(dequantiser) is False
