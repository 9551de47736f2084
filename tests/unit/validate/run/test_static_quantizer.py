"""quantize_static as it is compared with: per channel int8 weights, uint8 activations by min-max, nothing on
stdout.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from mixport.records.errors import UnsupportedModelError
from mixport.validate.run.static_quantizer import quantize_static_file

MODEL = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[1,1,4,4] input) => (float[1,2,4,4] output)
<float[2,1,1,1] w = {0.5, 127.0}> { output = Conv(input, w) }"""


def test_the_form_of_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "float.onnx")
    images = np.linspace(-1.0, 1.54, 16, dtype=np.float32).reshape(1, 1, 4, 4)
    quantize_static_file(tmp_path / "float.onnx", tmp_path / "static.onnx", images=images)
    assert capfd.readouterr().out == ""
    graph = onnx.load(tmp_path / "static.onnx").graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    conv = next(node for node in graph.node if node.op_type == "Conv")
    x, w = (next(node for node in graph.node if node.output[0] == name) for name in conv.input[:2])
    assert [node.op_type for node in (x, w)] == ["DequantizeLinear", "DequantizeLinear"]
    # min-max over the image: (1.54 + 1) / 255 a step, and -1 is code 0
    assert constants[x.input[1]] == pytest.approx(2.54 / 255, rel=1e-6)
    assert constants[x.input[2]].dtype == np.uint8
    assert constants[x.input[2]] == 100
    # one scale a channel: 127 codes reach the largest weight of each
    np.testing.assert_allclose(constants[w.input[1]], [0.5 / 127, 1.0], rtol=1e-6)
    assert constants[w.input[0]].dtype == np.int8
    assert constants[w.input[0]].ravel().tolist() == [127, 127]


def test_a_file_it_cannot_take(tmp_path: Path) -> None:
    (tmp_path / "float.onnx").write_bytes(b"no model")
    with pytest.raises(UnsupportedModelError, match="quantize_static fails on the float model"):
        quantize_static_file(
            tmp_path / "float.onnx", tmp_path / "static.onnx", images=np.zeros((1, 1, 4, 4), np.float32)
        )
