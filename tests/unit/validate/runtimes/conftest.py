"""A small model and jobs on it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from mixport.records.runtime import RuntimeJob
from mixport.records.targets import SessionRules

POLICY = SessionRules(optimization_level="all", threads=1)


@pytest.fixture
def quantiser() -> bytes:
    """QuantizeLinear of any [n, 4] floats, scale 0.1, zero point 3."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, None)
    constants = [
        onnx.numpy_helper.from_array(np.float32(0.1), "scale"),
        onnx.numpy_helper.from_array(np.uint8(3), "zero"),
    ]
    node = onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])
    graph = onnx.helper.make_graph([node], "quantiser", [x], [y], constants)
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
    ).SerializeToString()


@pytest.fixture
def jobs(quantiser: bytes) -> tuple[RuntimeJob, ...]:
    """Three runs of one model (one of them empty), a model that is damaged, and one run again."""
    x = np.random.default_rng(0).normal(0, 5, (6, 4)).astype(np.float32)
    return (
        RuntimeJob(model=quantiser, feeds=[{"x": x}, {"x": x[:0]}, {"x": x * 2}], outputs=("y",)),
        RuntimeJob(model=b"this is no model", feeds=[{"x": x}], outputs=("y",)),
        RuntimeJob(model=quantiser, feeds=[{"x": x[:1]}], outputs=("y",)),
    )


def quantised(x: np.ndarray) -> np.ndarray:
    """What the small model gives."""
    return np.clip(np.rint(x / np.float32(0.1)) + 3, 0, 255).astype(np.uint8)
