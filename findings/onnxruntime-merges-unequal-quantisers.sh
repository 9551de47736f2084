#!/usr/bin/env bash
# onnxruntime 1.32.0 (CPU, x64), onnx 1.23.2, numpy 2.4.6.
#
# QuantizeLinear(s1), DequantizeLinear(s1), QuantizeLinear(s2), DequantizeLinear(s2) is merged into one pair from optimisation level "basic"
# on although s1 and s2 differ, so that values are rounded once instead of twice. Both pairs may hold 16-bit codes. It also happens where a
# Mul by 1, an Add of 0, or transposes that cancel stand between the two when the file is written, as other optimisers remove those first.
# A Clip over the whole range of the codes, which changes nothing, prevents it.
#
# Output seen (values that differ from level "disabled", of 288):
#   uint8, nothing between: 115
#   int16, nothing between: 115
#   uint8, Mul by 1 between: 115
#   uint8, transposes that cancel: 115
#   uint8, Clip to 0..255: 0
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


def node(op, inputs, output, **attributes):
    return helper.make_node(op, inputs, [output], **attributes)


def model(kind: str, between: str) -> bytes:
    constants = {"s": np.float32(0.02), "t": np.float32(0.013), "z": np.dtype(kind).type(0), "one": np.float32(1.0)}
    constants |= {"low": np.uint8(0), "high": np.uint8(255)}
    nodes, codes = [node("QuantizeLinear", ["x", "s", "z"], "a")], "a"
    if between == "clip":
        nodes, codes = [*nodes, node("Clip", ["a", "low", "high"], "c")], "c"
    if between == "transposes":
        nodes, codes = [*nodes, node("Transpose", ["a"], "c", perm=[0, 2, 3, 1])], "c"
    nodes, values = [*nodes, node("DequantizeLinear", [codes, "s", "z"], "b")], "b"
    if between == "times one":
        nodes, values = [*nodes, node("Mul", ["b", "one"], "m")], "m"
    if between == "transposes":
        nodes.append(node("QuantizeLinear", [values, "t", "z"], "d"))
        nodes.append(node("Transpose", ["d"], "e", perm=[0, 3, 1, 2]))
    else:
        nodes.append(node("QuantizeLinear", [values, "t", "z"], "e"))
    nodes.append(node("DequantizeLinear", ["e", "t", "z"], "y"))
    used = {name for one in nodes for name in one.input}
    graph = helper.make_graph(
        nodes,
        "pairs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


x = np.abs(np.random.default_rng(0).normal(size=(2, 4, 6, 6)).astype(np.float32))
cases = {
    "uint8, nothing between": ("uint8", "nothing", True),
    "int16, nothing between": ("int16", "nothing", True),
    "uint8, Mul by 1 between": ("uint8", "times one", True),
    "uint8, transposes that cancel": ("uint8", "transposes", True),
    "uint8, Clip to 0..255": ("uint8", "clip", False),
}
same = True
for name, (kind, between, merged) in cases.items():
    results = []
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        results.append(ort.InferenceSession(model(kind, between), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0])
    differ = int((results[0] != results[1]).sum())
    print(f"{name}: {differ} of {x.size} differ")
    same = same and (differ > 0) == merged
sys.exit(not same)
PYTHON
"$folder/venv/bin/python" "$folder/probe.py"
