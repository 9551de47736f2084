#!/usr/bin/env bash
# onnxruntime 1.32.0 (CPU, x64), onnx 1.23.2, numpy 2.4.6.
#
# An AveragePool with ceil_mode=1 and count_include_pad=1 between DequantizeLinear and QuantizeLinear gives other values when it is fused.
# At optimisation levels "disabled" and "basic" the float AveragePool divides a window that reaches over the end by the elements that are
# left, as the ONNX operator says. At "extended" and "all" the optimiser writes QLinearAveragePool, which divides by the full window: with a
# 2x2 kernel on 15x15 the last column and row come out at a half, the corner at a quarter. The fusion asks for no attribute.
#
# Output seen:
#   ORT_DISABLE_ALL: interior 100 last column 100 corner 100
#   ORT_ENABLE_BASIC: interior 100 last column 100 corner 100
#   ORT_ENABLE_EXTENDED: interior 100 last column 50 corner 25
#   ORT_ENABLE_ALL: interior 100 last column 50 corner 25
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cat >"$folder/probe.py" <<'PYTHON'
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

scale = numpy_helper.from_array(np.float32(1.0), "scale")
zero = numpy_helper.from_array(np.uint8(0), "zero")
nodes = [
    helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["x"]),
    helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, count_include_pad=1),
    helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["pooled"]),
]
graph = helper.make_graph(
    nodes,
    "pool",
    [helper.make_tensor_value_info("codes", TensorProto.UINT8, [1, 1, 15, 15])],
    [helper.make_tensor_value_info("pooled", TensorProto.UINT8, None)],
    [scale, zero],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
seen = {}
for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"):
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (pooled,) = session.run(None, {"codes": np.full((1, 1, 15, 15), 100, np.uint8)})
    seen[level] = tuple(int(pooled[0, 0][place]) for place in ((3, 3), (3, 7), (7, 7)))
    print(f"{level}: interior {seen[level][0]} last column {seen[level][1]} corner {seen[level][2]}")
plain, fused = (100, 100, 100), (100, 50, 25)
sys.exit(list(seen.values()) != [plain, plain, fused, fused])
PYTHON
"$folder/venv/bin/python" "$folder/probe.py"
