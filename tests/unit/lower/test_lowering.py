"""The whole stage on small programs: what lies in the file, bit by bit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from mixport.lower import lower, read_lowered
from mixport.lower.lowering import check_sites
from mixport.model.float_model import load_model
from mixport.quantize.quantizer import quantize, read_quantized
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.scheme import Scheme
from mixport.records.errors import InvariantError
from mixport.records.quantized_model import LoweredGraph, QuantizedModel
from mixport.records.targets import load_target

Made = tuple[QuantizedModel, LoweredGraph, onnx.ModelProto]


def make(folder: Path, *, scheme: str, target: str = "ort-cpu") -> Made:
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    calibration = CalibrationSet(
        images_path=folder / "images.npy", count=16, method="images", recipe_key="", content_sha256=""
    )
    model = load_model("tests.models:tiny")
    quantized = quantize(model, calibration, load_target(target), scheme=Scheme.parse(scheme), workdir=folder)
    lowered = lower(quantized, load_target(target), workdir=folder)
    return quantized, lowered, onnx.load(str(lowered.model_path))


@pytest.fixture(scope="module")
def w2a4(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("w2a4"), scheme="w2a4")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("plain"), scheme="w4a8", target="onnx-int8")


def test_two_bit_weights_are_packed_four_to_a_byte(w2a4: Made) -> None:
    quantized, lowered, model = w2a4
    assert lowered.opset == 25
    assert model.ir_version == 13
    weights = {t.name: t for t in model.graph.initializer}
    two_bit = [site for site in quantized.weights if site.bits == 2]
    assert two_bit
    for site in two_bit:
        tensor = weights[f"{site.name}.weight"]
        assert tensor.data_type == TensorProto.INT2
        assert len(tensor.raw_data) == -(-int(np.prod(site.shape)) // 4)
        codes = numpy_helper.to_array(tensor).astype(np.int8)
        assert codes.min() >= -2
        assert codes.max() <= 1


def test_every_initializer_is_raw_data(w2a4: Made) -> None:
    for tensor in w2a4[2].graph.initializer:
        assert tensor.HasField("raw_data") or not np.prod(tensor.dims), tensor.name


def test_standard_operators_only_and_no_value_info(w2a4: Made) -> None:
    model = w2a4[2]
    assert {n.domain for n in model.graph.node} == {""}
    assert [o.domain for o in model.opset_import] == [""]
    assert not model.graph.value_info
    assert not model.metadata_props
    assert not model.graph.metadata_props


def test_operator_counts(w2a4: Made) -> None:
    counts = Counter(n.op_type for n in w2a4[2].graph.node)
    assert counts["Conv"] == 5
    assert counts["Gemm"] == 1
    assert (counts["Add"], counts["Mul"], counts["GlobalAveragePool"], counts["MaxPool"]) == (1, 1, 2, 1)
    assert counts["Relu"] == counts["Gather"] == counts["GatherElements"] == 0
    assert counts["Sigmoid"] == 1  # between codes: proved to be a table


def test_low_bit_activations_are_clipped_codes(w2a4: Made) -> None:
    quantized, _, model = w2a4
    producer = {o: n for n in model.graph.node for o in n.output}
    low = [site for site in quantized.activations if site.bits == 4 and site.role != "table"]
    assert low
    for site in low:
        assert producer[site.name].op_type == "Clip"


def test_bias_scale_is_the_float32_product(w2a4: Made) -> None:
    quantized, _, model = w2a4
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    scale_of = {site.name: np.float32(site.params.scale) for site in quantized.activations}
    checked = 0
    for site in quantized.weights:
        assert site.input_site is not None
        if f"{site.name}.bias" not in arrays:
            continue
        expected = scale_of[site.input_site] * arrays[f"{site.name}.weight/scale"]
        np.testing.assert_array_equal(arrays[f"{site.name}.bias/scale"], expected)
        assert arrays[f"{site.name}.bias"].dtype == np.int32
        checked += 1
    assert checked == len(quantized.weights)


def test_a_target_without_narrow_types_gets_int8_and_a_fixed_batch(plain: Made) -> None:
    quantized, lowered, model = plain
    assert lowered.opset == 21
    assert {t.data_type for t in model.graph.initializer} <= {
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT32,
        TensorProto.FLOAT,
        TensorProto.INT64,
    }
    assert not any(n.op_type == "Cast" and n.input[0].endswith("weight") for n in model.graph.node)
    assert not quantized.dynamic_batch
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_the_same_program_gives_the_same_bytes(w2a4: Made, tmp_path: Path) -> None:
    again = lower(w2a4[0], load_target("ort-cpu"), workdir=tmp_path)
    assert again.model_path.read_bytes() == w2a4[1].model_path.read_bytes()


def test_records_survive_the_disk(w2a4: Made) -> None:
    folder = w2a4[1].model_path.parent
    assert read_lowered(folder) == w2a4[1]
    assert read_quantized(folder) == w2a4[0]


@pytest.mark.parametrize("change", ["scale", "bound", "name"])
def test_a_site_that_changes_in_lowering_is_our_bug(w2a4: Made, change: str) -> None:
    import onnx_ir as ir

    quantized, _, proto = w2a4
    model = ir.from_proto(proto)
    site = next(s for s in quantized.activations if s.bits == 4 and s.role == "compute")
    value = next(v for n in model.graph for v in n.outputs if v.name == site.name)
    clip = value.producer()
    assert clip is not None
    if change == "name":
        value.name = "lost"
    elif change == "bound":
        clip.replace_input_with(2, _scalar(model, np.uint8(14)))
    else:
        reader = next(n for n in value.consumers() if n.op_type == "DequantizeLinear")
        reader.replace_input_with(1, _scalar(model, np.float32(site.params.scale * 1.001)))
    with pytest.raises(InvariantError, match=site.name):
        check_sites(model, quantized)


def _scalar(model: object, value: np.generic) -> object:
    import onnx_ir as ir

    from mixport.lower.onnx_graph import initializer

    assert isinstance(model, ir.Model)
    return initializer(model.graph, "changed", np.asarray(value))
