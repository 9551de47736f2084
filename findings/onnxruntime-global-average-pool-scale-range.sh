#!/usr/bin/env bash
# onnxruntime 1.32.0 (CPU, x64), onnx 1.23.2, numpy 2.4.6.
#
# A valid QDQ GlobalAveragePool loads, and then fails at its first run, when its output scale is fine: the fused
# QLinearGlobalAveragePool refuses x_scale / (H * W * y_scale) >= 256. The same file runs at optimisation levels "disabled" and "basic".
# A calibrator gives such a scale to a pooled value that hardly varies, e.g. the mean over space behind an instance norm.
#
# Output seen (8x8 pixels, x_scale 1.0):
#   y_scale 2^-13, ORT_ENABLE_BASIC: runs
#   y_scale 2^-13, ORT_ENABLE_ALL: runs
#   y_scale 2^-14, ORT_ENABLE_BASIC: runs
#   y_scale 2^-14, ORT_ENABLE_ALL: loads, then fails: QLinearGlobalAveragePool parameter out of computation range!
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


def model(y_scale: float) -> bytes:
    constants = {"one": np.float32(1.0), "fine": np.float32(y_scale), "zero": np.uint8(0)}
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "one", "zero"], ["x"]),
        helper.make_node("GlobalAveragePool", ["x"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "fine", "zero"], ["pooled"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pool",
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, [1, 4, 8, 8])],
        [helper.make_tensor_value_info("pooled", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


seen = []
for exponent in (13, 14):
    for level in ("ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        session = ort.InferenceSession(model(2.0**-exponent), options, providers=["CPUExecutionProvider"])
        try:
            session.run(None, {"codes": np.full((1, 4, 8, 8), 3, np.uint8)})
            seen.append("runs")
        except Exception as error:
            seen.append("loads, then fails: " + str(error).split("Status Message: ")[-1])
        print(f"y_scale 2^-{exponent}, {level}: {seen[-1]}")
sys.exit(seen[:3] != ["runs"] * 3 or "out of computation range" not in seen[3])
PYTHON
"$folder/venv/bin/python" "$folder/probe.py"
