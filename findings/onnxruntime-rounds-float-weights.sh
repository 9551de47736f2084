#!/usr/bin/env bash
# onnxruntime 1.32.0 (CPU, x64), onnx 1.23.2, numpy 2.4.6.
#
# A ConvTranspose with float32 weights between DequantizeLinear and QuantizeLinear loses the precision of its weights: from optimisation
# level "basic" on, the session rounds them (and the bias) to integers of its own and multiplies by what is left. The file holds no quantised
# weight, CPUExecutionProvider runs the operator in float all the same, and nothing is said. Conv (also in three axes) and Gemm are treated
# alike, MatMul is not. Only "disabled" computes what the file says. A multiplication by a number other than 1 in front of the
# QuantizeLinear prevents it for ConvTranspose; for a Conv it has to stand in front of the operator.
#
# Output seen (largest distance, in output codes, from the float operator in NumPy):
#   ConvTranspose, ORT_DISABLE_ALL: 0
#   ConvTranspose, ORT_ENABLE_BASIC: 2
#   ConvTranspose, ORT_ENABLE_ALL: 2
#   ConvTranspose, then Mul 2, ORT_ENABLE_ALL: 0
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

rng = np.random.default_rng(0)
weight = rng.normal(size=(8, 8, 2, 2)).astype(np.float32)
codes = rng.integers(0, 256, (1, 8, 6, 6)).astype(np.uint8)
in_scale, out_scale, middle = np.float32(0.01), np.float32(0.02), np.uint8(128)


def model(doubled: bool) -> bytes:
    factor = np.float32(2.0 if doubled else 1.0)
    constants = {"si": in_scale, "so": out_scale * factor, "z": middle, "w": weight, "two": np.float32(2.0)}
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "si", "z"], ["x"]),
        helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
        *([helper.make_node("Mul", ["y", "two"], ["y2"])] if doubled else []),
        helper.make_node("QuantizeLinear", ["y2" if doubled else "y", "so", "z"], ["result"]),
    ]
    graph = helper.make_graph(
        nodes,
        "transposed",
        [helper.make_tensor_value_info("codes", TensorProto.UINT8, list(codes.shape))],
        [helper.make_tensor_value_info("result", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


x = (codes.astype(np.float64) - middle) * float(in_scale)
wanted = np.zeros((1, 8, 12, 12))
for row in range(2):
    for column in range(2):
        wanted[:, :, row::2, column::2] = np.einsum("nchw,co->nohw", x, weight[:, :, row, column].astype(np.float64))
wanted = np.clip(np.rint(wanted / float(out_scale)) + int(middle), 0, 255)
seen = []
for doubled, level in ((False, "ORT_DISABLE_ALL"), (False, "ORT_ENABLE_BASIC"), (False, "ORT_ENABLE_ALL"), (True, "ORT_ENABLE_ALL")):
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(model(doubled), options, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"codes": codes})
    seen.append(int(np.abs(result.astype(int) - wanted).max()))
    print(f"ConvTranspose{', then Mul 2' if doubled else ''}, {level}: {seen[-1]}")
sys.exit(not (seen[0] == 0 and seen[1] > 1 and seen[2] > 1 and seen[3] == 0))
PYTHON
"$folder/venv/bin/python" "$folder/probe.py"
