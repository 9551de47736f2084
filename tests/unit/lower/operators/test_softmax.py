"""A small transformer through quantize and lower: nothing is left to kernels that differ between machines,
unless asked for.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from mixport.lower import lower
from mixport.model.float_model import load_model
from mixport.quantize.emit.simulate import open_simulation
from mixport.quantize.quantizer import quantize
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.scheme import Scheme
from mixport.records.quantized_model import LoweredGraph
from mixport.records.targets import load_target
from mixport.validate.validate import validate


def make(folder: Path, *, portable: bool) -> tuple[LoweredGraph, onnx.ModelProto, tuple[str, ...]]:
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8))
    calibration = CalibrationSet(
        images_path=folder / "images.npy", count=16, method="images", recipe_key="", content_sha256=""
    )
    target = load_target("ort-cpu") if portable else load_target("ort-cpu").not_portable()
    quantized = quantize(
        load_model("tests.models:transformer"),
        calibration,
        target,
        scheme=Scheme.parse("w8a8"),
        workdir=folder,
    )
    lowered = lower(quantized, target, workdir=folder)
    images = np.random.default_rng(1).normal(0, 1, (4, 3, 32, 32)).astype(np.float32)
    report = validate(lowered, images, target, simulation=open_simulation(quantized))
    assert report.verdict == "exact"
    assert sum(result.values for result in report.runtimes) > 10_000
    return lowered, onnx.load(str(lowered.model_path)), report.float_islands


@pytest.fixture(scope="module")
def portable_file(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[LoweredGraph, onnx.ModelProto, tuple[str, ...]]:
    return make(tmp_path_factory.mktemp("portable"), portable=True)


def test_no_node_is_outside_the_claim(
    portable_file: tuple[LoweredGraph, onnx.ModelProto, tuple[str, ...]],
) -> None:
    _, proto, islands = portable_file
    counts = Counter(node.op_type for node in proto.graph.node)
    assert islands == ()
    assert counts["Softmax"] == counts["LayerNormalization"] == counts["ReduceMean"] == 0
    assert counts["ReduceMax"] == counts["Exp"] == 1
    assert counts["Sqrt"] == 3
    assert counts["ReduceSum"] == 1 + 2 * 3


def test_attention_is_two_integer_products_and_one_division_behind_them(
    portable_file: tuple[LoweredGraph, onnx.ModelProto, tuple[str, ...]],
) -> None:
    _, proto, _ = portable_file
    producer = {name: node for node in proto.graph.node for name in node.output}
    readers = {
        name: [node for node in proto.graph.node if name in node.input]
        for node in proto.graph.node
        for name in node.output
    }

    def only_reader(node: onnx.NodeProto) -> onnx.NodeProto:
        (reader,) = readers[node.output[0]]
        return reader

    (exp,) = (node for node in proto.graph.node if node.op_type == "Exp")
    exponents, largest = (producer[name] for name in producer[exp.input[0]].input)
    assert exponents.op_type == largest.op_type == "DequantizeLinear"
    assert producer[largest.input[0]].op_type == "ReduceMax"
    scores = producer[exponents.input[0]]
    # No multiplication by 1 / sqrt(d): the product's codes are read with another step.
    assert scores.op_type == "QuantizeLinear" and producer[scores.input[0]].op_type == "MatMul"
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    assert values[exponents.input[1]] == pytest.approx(values[scores.input[1]] * 6**-0.5, rel=2.0**-9)
    assert (
        exponents.input[1] == largest.input[1] and exponents.input[2] == largest.input[2] == scores.input[2]
    )
    numerators = only_reader(exp)
    assert (values[numerators.input[1]], values[numerators.input[2]]) == (2.0**-8, 0)
    assert sorted(node.op_type for node in readers[only_reader(numerators).output[0]]) == [
        "MatMul",
        "ReduceSum",
    ]
    product, total = sorted(readers[only_reader(numerators).output[0]], key=lambda node: node.op_type)
    assert only_reader(product) is only_reader(total) or only_reader(product) == only_reader(total)
    assert (
        only_reader(product).op_type == "Div"
        and only_reader(only_reader(product)).op_type == "QuantizeLinear"
    )


def test_sixteen_bit_codes_of_a_product_leave_its_kernel_integer(
    portable_file: tuple[LoweredGraph, onnx.ModelProto, tuple[str, ...]],
) -> None:
    _, proto, _ = portable_file
    merge = next(
        node for node in proto.graph.node if node.op_type in {"Gemm", "MatMul"} and "merge" in node.name
    )
    readers = [node for node in proto.graph.node if merge.output[0] in node.input]
    assert [node.op_type for node in readers] == ["Mul"]


def test_the_runtime_s_own_kernels_are_kept_where_asked_for_and_named(tmp_path: Path) -> None:
    _, proto, islands = make(tmp_path, portable=False)
    counts = Counter(node.op_type for node in proto.graph.node)
    assert counts["Softmax"] == 1
    assert counts["LayerNormalization"] == 3
    assert sum("LayerNormalization" in name or "Softmax" in name for name in islands) == 4
