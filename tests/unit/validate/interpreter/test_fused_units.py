"""Units of a file: their integers, their codes, and why some of them cannot be cut out."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from mixport.validate.interpreter.execution_plan import build_plan
from mixport.validate.interpreter.fused_units import FusedUnit, fused_units
from mixport.validate.interpreter.graph import read_graph
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network, build_transformer

f32 = np.float32


def units_of(b: QdqBuilder, output: str, **options: int) -> tuple[FusedUnit, ...]:
    return fused_units(build_plan(read_graph(b.build(output, **options))))


def test_units_come_in_graph_order() -> None:
    units = units_of(build_network(), "head_sum")
    kinds = "conv requantise conv add requantise conv average gemm"
    outputs = "stem stem.requantised branch join join.requantised depthwise pool head_sum"
    assert [unit.kind for unit in units] == kinds.split()
    assert [unit.output for unit in units] == outputs.split()
    assert all(unit.uncut == unit.warning == unit.named == "" for unit in units)
    assert all(unit.site == unit.output for unit in units)


def test_a_layer_holds_the_integers_of_the_file() -> None:
    b = build_network(bits=2)
    model = b.build("head_sum")
    graph = read_graph(model)
    unit = next(unit for unit in fused_units(build_plan(graph)) if unit.output == "depthwise")
    assert unit.weight is not None and unit.bias is not None and unit.weight_scale is not None
    np.testing.assert_array_equal(unit.weight, graph.constants["depthwise.weight"])
    np.testing.assert_array_equal(unit.bias, graph.constants["depthwise.bias"])
    assert unit.weight.dtype == unit.bias.dtype == np.int64 and unit.weight_scale.shape == (8,)
    assert (unit.weight_zero_point, unit.weight_signed, unit.low, unit.high) == (0, True, 0, 15)
    (source,) = unit.inputs
    assert (source.name, source.low, source.high, source.zero_point) == ("join.requantised", 0, 15, 0)
    assert source.scale == f32(1.1) and source.dtype == np.uint8
    # From the codes to the Clip, without what computes constants.
    assert [node.op for node in unit.nodes] == ["DequantizeLinear", "Conv", "QuantizeLinear", "Clip"]


def test_a_layer_without_a_quantiser_gives_floats() -> None:
    unit = units_of(build_network(), "head_sum")[-1]
    assert unit.saturation is None and [node.op for node in unit.nodes] == ["DequantizeLinear", "Gemm"]


@pytest.mark.parametrize(("stored", "zero", "signed"), [(np.uint8, 128, False), (np.int8, 0, True)])
def test_a_weight_of_a_product_is_turned_and_centred(stored: type, zero: int, signed: bool) -> None:
    b = QdqBuilder(shape=("N", 4))
    codes = b.rng.integers(0, 100, (4, 3)).astype(stored)
    weight = b.node("DequantizeLinear", [b.constant(codes), b.constant(f32(0.5)), b.constant(stored(zero))])
    product = b.node("MatMul", [b.qdq("input", "x", 0.25, 3), weight])
    (unit,) = units_of(b, b.qdq(product, "y", 2.0, 7))
    assert unit.kind == "matmul" and unit.weight is not None
    np.testing.assert_array_equal(unit.weight, codes.T.astype(np.int64) - zero)
    assert (unit.weight_zero_point, unit.weight_signed) == (zero, signed)
    assert [source.name for source in unit.inputs] == ["x"]


def test_a_product_of_two_code_tensors_has_no_weight() -> None:
    units = {unit.output: unit for unit in units_of(build_transformer(), "logits_sum")}
    unit = units["context"]
    assert unit.kind == "matmul" and unit.weight is None and len(unit.inputs) == 2
    assert (unit.inputs[0].name, unit.inputs[0].zero_point, unit.inputs[1].zero_point) == (
        "attention",
        0,
        128,
    )
    table = units["mlp.table"]
    assert (table.kind, table.inputs[0].name, table.inputs[0].scale) == ("table", "mlp.input", 1)
    assert [node.op for node in table.nodes] == ["Cast", "Gather"] and table.uncut == ""


def test_a_flat_table_is_known_by_the_tensor_behind_its_reshape() -> None:
    b = QdqBuilder(shape=(2, 3))
    codes = b.quantise("input", "x", 0.5, 3)
    flat = b.node("Cast", [b.node("Reshape", [codes, b.constant(np.asarray([-1]))])], to=TensorProto.INT32)
    looked = b.node("GatherElements", [b.constant(np.arange(5, 250).astype(np.uint8)), flat], output="flat")
    b.node("Reshape", [looked, b.constant(np.asarray([2, 3]))], output="t")
    (unit,) = units_of(b, "t", output_type=TensorProto.UINT8)
    assert (unit.output, unit.named, unit.site, unit.low, unit.high) == ("flat", "t", "t", 5, 249)


def test_a_function_reads_one_code_tensor() -> None:
    b = QdqBuilder()
    sigmoid = b.node("Sigmoid", [b.qdq("input", "x", 0.037, 117)], name="sigmoid")
    (unit,) = units_of(b, b.quantise(sigmoid, "y", 1 / 256, 0), output_type=TensorProto.UINT8)
    assert (unit.kind, unit.node.name, unit.output, unit.uncut) == ("function", "sigmoid", "y", "")
    assert [node.op for node in unit.nodes] == ["DequantizeLinear", "Sigmoid", "QuantizeLinear"]
    # Sigmoid of (0 - 117) * 0.037 and of (255 - 117) * 0.037, in steps of 1 / 256.
    assert (unit.low, unit.high) == (3, 254)


def uncut(b: QdqBuilder, output: str) -> str:
    return units_of(b, output)[-1].uncut


def test_movement_inside_is_named() -> None:
    b = QdqBuilder()
    moved = b.node("Transpose", [b.qdq("input", "x", 0.03, 128)], perm=[0, 1, 3, 2], name="turn")
    found = uncut(b, b.qdq(b.node("GlobalAveragePool", [moved]), "y", 0.01, 100))
    assert found == "Transpose turn stands between DequantizeLinear and GlobalAveragePool"
    b = QdqBuilder()
    b.quantise("input", "x", 0.03, 128)
    conv = b.layer("Conv", "x", (6, 3, 3, 3), name="conv")
    found = uncut(b, b.qdq(b.node("Transpose", [conv], perm=[0, 2, 3, 1], name="turn"), "y", 0.4, 120))
    assert found == "Transpose turn stands between Conv and QuantizeLinear"


def test_a_constant_summand_and_a_computed_index_are_named() -> None:
    b = QdqBuilder()
    codes = b.constant(np.full((1, 3, 1, 1), 9, np.uint8))
    other = b.node("DequantizeLinear", [codes, b.constant(f32(0.5)), b.constant(np.uint8(3))])
    x = b.qdq("input", "x", 0.25, 128)
    assert uncut(b, b.qdq(b.node("Add", [x, other]), "y", 0.25, 100)) == "one input is constant"
    text = helper.make_tensor_value_info("i", TensorProto.INT64, ["N"])
    b = QdqBuilder()
    table = b.node("Gather", [b.constant(np.arange(9).astype(np.uint8)), "i"], output="t")
    b.quantisation[table] = (f32(0.5), 0, "uint8")
    model = b.build(b.dequantise(table))
    model.graph.input.append(text)
    (unit,) = fused_units(build_plan(read_graph(model)))
    assert (unit.inputs, unit.uncut) == ((), "its index is not the Cast of a code tensor")
