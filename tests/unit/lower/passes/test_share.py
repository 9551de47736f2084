"""Equal integers are stored once, in the file and in the program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch

from mixport.lower import lower
from mixport.lower.passes.share import ShareInitializersPass
from mixport.model.float_model import load_model
from mixport.quantize.emit.simulate import open_simulation
from mixport.quantize.quantizer import quantize
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.scheme import Scheme
from mixport.records.targets import load_target
from mixport.validate.interpreter.interpreter import Interpreter


def test_type_shape_and_content_decide() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]> agraph (float[2] x) => (float[2] y)
        <float[3] a = {1, 2, 3}, float[3] b = {1, 2, 3}, float[3] c = {1, 2, 4}, float[1, 3] d = {1, 2, 3},
        int32[3] e = {1, 2, 3},
         float s = {0.5}, float t = {0.5}>
        { j = Concat <axis = 0> (x, a, b, c) f = Cast <to = 1> (e) k = Mul(j, s) l = Mul(k, t) y = Slice(l,
        d, f) }"""
    )
    shared = ir.to_proto(ShareInitializersPass()(ir.from_proto(model)).model).graph
    assert [tensor.name for tensor in shared.initializer] == ["a", "c", "d", "e", "s", "t"]
    assert list(shared.node[0].input) == ["x", "a", "a", "c"]


@pytest.mark.parametrize("scheme", ["w8a8", "w2a4"])
def test_weights_of_a_module_called_four_times(tmp_path: Path, scheme: str) -> None:
    np.save(
        tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    )
    calibration = CalibrationSet(
        images_path=tmp_path / "images.npy", count=4, method="images", recipe_key="", content_sha256=""
    )
    target = load_target("ort-cpu")
    model = load_model("tests.models:repeated")
    quantized = quantize(model, calibration, target, scheme=Scheme.parse(scheme), workdir=tmp_path)
    lowered = lower(quantized, target, workdir=tmp_path)
    stored = [
        tensor.name
        for tensor in onnx.load(str(lowered.model_path)).graph.initializer
        if len(tensor.dims) == 4
    ]
    # The second block's wide layer has the first one's weight: its codes are those of `wide`.
    assert sorted(stored) == ["narrow.weight", "stem.weight", "wide.weight"]
    program = torch.export.load(quantized.program_path)
    assert sum(value.dtype is torch.int8 for value in program.state_dict.values()) == 4  # and the head's
    assert len(quantized.weights) == 10
    x = np.random.default_rng(1).uniform(-2, 2, (2, 3, 32, 32)).astype(np.float32)
    expected, got = (
        open_simulation(quantized).simulate(x, overrides={}).codes,
        Interpreter(lowered.model_path).run(x).codes,
    )
    for site in quantized.activations:
        np.testing.assert_array_equal(got[site.name], expected[site.name])
