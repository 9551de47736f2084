#!/usr/bin/env bash
# onnxruntime 1.32.0 (CPU, x64), onnx 1.23.2, numpy 2.4.6.
#
# A convolution between DequantizeLinear and QuantizeLinear with int8 activations becomes an integer QLinearConv by default on x64. With an
# integer Clip of the codes between QuantizeLinear and DequantizeLinear (4-bit codes, or the bounds of a Relu6) it stays a float Conv. The same
# graph with uint8 codes is fused, Clip or not. The session option session.qdqisint8allowed=1 fuses the int8 one too; it is said to allow int8
# in QDQ at all, which the graph without the Clip does not need.
#
# Output seen:
#   int8: QLinearConv
#   int8, Clip: Conv
#   int8, Clip, session.qdqisint8allowed: QLinearConv
#   uint8, Clip: QLinearConv
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cat >"$folder/probe.py" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

WRITTEN = Path(sys.argv[1]) / "optimised.onnx"


def convolution(storage: str, *, clip: bool, allow: bool) -> str:
    """Operator that the convolution runs as."""
    low = np.iinfo(storage).min
    constants = {
        "s": np.float32(0.05),
        "z": np.array(low, storage),
        "lo": np.array(low, storage),
        "hi": np.array(low + 15, storage),
        "w": np.random.default_rng(0).integers(-7, 8, (8, 8, 3, 3)).astype(np.int8),
        "ws": np.float32(0.01),
        "wz": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"]),
        *([helper.make_node("Clip", ["q", "lo", "hi"], ["k"])] if clip else []),
        helper.make_node("DequantizeLinear", ["k" if clip else "q", "s", "z"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 8, 8]) for name in "xy"]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "conv", ports[:1], ports[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(WRITTEN)
    options.log_severity_level = 3
    if allow:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (found,) = (node.op_type for node in onnx.load(WRITTEN).graph.node if "Conv" in node.op_type)
    return found


seen = {
    "int8": convolution("int8", clip=False, allow=False),
    "int8, Clip": convolution("int8", clip=True, allow=False),
    "int8, Clip, session.qdqisint8allowed": convolution("int8", clip=True, allow=True),
    "uint8, Clip": convolution("uint8", clip=True, allow=False),
}
for what, operator in seen.items():
    print(f"{what}: {operator}")
sys.exit([*seen.values()] != ["QLinearConv", "Conv", "QLinearConv", "QLinearConv"])
PYTHON
"$folder/venv/bin/python" "$folder/probe.py" "$folder"
