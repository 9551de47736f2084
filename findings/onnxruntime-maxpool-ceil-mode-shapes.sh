#!/usr/bin/env bash
# onnxruntime 1.32.0 (CPU, x64), onnx 1.23.2, numpy 2.4.6.
#
# A MaxPool with ceil_mode=1 whose last window would lie in the trailing padding alone has two shapes in one session. Run by itself it gives
# 4 columns for 11 (kernel 3, stride 3, padding 1), as the ONNX operator and PyTorch do, which leave that window out. Shape inference at load
# counts it, so that a file that adds a constant with 4 columns to the result is refused.
#
# Output seen:
#   MaxPool alone: (1, 1, 4, 4)
#   MaxPool, then Add of [1, 1, 4, 4]: refused, Incompatible dimensions
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


def session(add: bool) -> ort.InferenceSession:
    pool = {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}
    nodes = [helper.make_node("MaxPool", ["x"], ["p"], **pool)]
    if add:
        nodes.append(helper.make_node("Add", ["p", "c"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "pool",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 11, 11])],
        [helper.make_tensor_value_info("y" if add else "p", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((1, 1, 4, 4), np.float32), "c")] if add else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


(alone,) = session(False).run(None, {"x": np.zeros((1, 1, 11, 11), np.float32)})
print(f"MaxPool alone: {alone.shape}")
try:
    session(True)
    refused = ""
except Exception as error:
    refused = str(error)
print(f"MaxPool, then Add of [1, 1, 4, 4]: {'refused, ' + refused.split('] ')[-1].strip() if refused else 'loads'}")
sys.exit(not (alone.shape == (1, 1, 4, 4) and "Incompatible dimensions" in refused))
PYTHON
"$folder/venv/bin/python" "$folder/probe.py"
