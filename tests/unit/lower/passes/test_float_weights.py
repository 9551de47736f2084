"""Layers with float weights behind codes: onnxruntime must compute what the file says, at every optimisation
level.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from mixport.lower.passes.float_weights import KeepFloatWeightsPass

LAYERS = {
    "Conv": ((2, 4, 6, 6), (5, 4, 2, 2), {}),
    "Conv in three axes": ((2, 4, 3, 6, 6), (5, 4, 2, 2, 2), {}),
    "ConvTranspose": ((2, 4, 6, 6), (4, 5, 2, 2), {"strides": [2, 2]}),
    "Gemm": ((3, 4), (4, 5), {}),
}


def layer(name: str) -> tuple[onnx.ModelProto, np.ndarray]:
    """Codes, DequantizeLinear, the layer with float weights, QuantizeLinear; and codes for it."""
    shape, weight_shape, attributes = LAYERS[name]
    rng = np.random.default_rng(0)
    constants = {
        "s": np.float32(0.01),
        "z": np.uint8(128),
        "t": np.float32(0.003),
        "w": rng.normal(size=weight_shape).astype(np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["x"]),
        helper.make_node(name.split()[0], ["x", "w"], ["y"], **attributes),
        helper.make_node("QuantizeLinear", ["y", "t", "z"], ["result"]),
    ]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, list(shape))],
        [helper.make_tensor_value_info("result", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model, rng.integers(0, 256, shape).astype(np.uint8)


def run(model: onnx.ModelProto, codes: np.ndarray, level: str) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"codes": codes})[0].astype(int)


@pytest.mark.parametrize("name", LAYERS)
def test_weights_stay_as_they_are(name: str) -> None:
    model, codes = layer(name)
    wanted = run(model, codes, "ORT_DISABLE_ALL")
    kept = ir.to_proto(KeepFloatWeightsPass()(ir.from_proto(model)).model)
    assert [node.op_type for node in kept.graph.node] == [
        "DequantizeLinear",
        "Mul",
        name.split()[0],
        "QuantizeLinear",
    ]
    # Twice the input and half the weights are the same floats: no code moves.
    assert np.array_equal(run(kept, codes, "ORT_DISABLE_ALL"), wanted)
    for level in ("ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
        # Another order of summation may round a tie otherwise.
        assert np.abs(run(kept, codes, level) - wanted).max() <= 1
        assert (run(kept, codes, level) != wanted).mean() < 0.01


def test_a_second_pass_changes_nothing() -> None:
    once = KeepFloatWeightsPass()(ir.from_proto(layer("Conv")[0])).model
    assert not KeepFloatWeightsPass()(once).modified


def test_a_layer_that_reads_the_image_is_left_alone() -> None:
    model, _ = layer("Conv")
    del model.graph.node[0]
    model.graph.node[0].input[0] = "codes"
    assert not KeepFloatWeightsPass()(ir.from_proto(model)).modified
