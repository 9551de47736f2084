#!/usr/bin/env bash
# onnxruntime-qnn 2.7.0 (its HTP simulator, x86-64 Linux), onnxruntime 1.31.1, onnx 1.23.2, numpy 2.4.6.
#
# A quantised Conv adds int32 bias codes to int32 sums. On htp_arch 73 and newer the sum that a channel gets depends on the largest bias of the whole
# layer: changing the bias of channel 64 from 64 to 1000 moves codes of 38 of the 64 channels before it, by exactly one unit of their bias towards 0. Where
# the largest bias is a power of two no channel moves, and on htp_arch 68 none does in either case.
#
# All 4,096 biases of four layers with a scale for each channel follow one rule, in float32: with u = x_scale * max(w_scale) and S = max|b * u| / 2^28, the
# bias that is added is trunc(round(b * u * (1/S)) * S / u). The probe computes it beside what it sees.
#
# Output seen:
#   htp_arch 68, largest bias 64: 0 channels move; 1000: 0
#   htp_arch 73, largest bias 64: 0 channels move; 1000: 38
#   the rule says 38, the same channels: True
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.31.1 onnxruntime-qnn==2.7.0 onnx==1.23.2 numpy==2.4.6
cat >"$folder/probe.py" <<'PYTHON'
import sys

import numpy as np
import onnxruntime
import onnxruntime_qnn
from onnx import TensorProto, helper, numpy_helper

f32 = np.float32
X_SCALE, W_SCALE, ZERO, OUT_ZERO = f32(0.0173), f32(0.0071), 128, 60
UNIT = f32(X_SCALE * W_SCALE)
Y_SCALE = f32(UNIT * f32(8.3))  # some eight units of a sum are one code
CODES = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)

onnxruntime.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
DEVICE = next(one for one in onnxruntime.get_ep_devices() if one.ep_name == "QNNExecutionProvider")


def convolution(bias):
    """1 x 1, one input channel, weights 1: each output is the input's code less 128, plus the bias."""
    count = len(bias)
    constants = {
        "xs": X_SCALE, "xz": np.uint8(ZERO), "ys": Y_SCALE, "yz": np.uint8(OUT_ZERO),
        "w": np.ones((count, 1, 1, 1), np.int8), "ws": np.full(count, W_SCALE), "wz": np.zeros(count, np.int8),
        "b": bias.astype(np.int32), "bs": np.full(count, UNIT), "bz": np.zeros(count, np.int32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"], name="x_dq"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], name="w_dq", axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bf"], name="b_dq", axis=0),
        helper.make_node("Conv", ["xf", "wf", "bf"], ["yf"], name="conv", kernel_shape=[1, 1]),
        helper.make_node("QuantizeLinear", ["yf", "ys", "yz"], ["y"], name="y_q"),
    ]
    graph = helper.make_graph(
        nodes,
        "one_conv",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 1, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, count, 16, 16])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def simulated(bias, arch):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices(
        [DEVICE], {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "htp_arch": str(arch)}
    )
    session = onnxruntime.InferenceSession(convolution(bias).SerializeToString(), options)
    return session.run(None, {"x": CODES})[0][0].reshape(len(bias), -1)


def moved(arch, last):
    """Channels of 1 ... 64 whose codes change where one channel more has this bias."""
    bias = np.arange(1, 65)
    alone, beside = simulated(bias, arch), simulated(np.append(bias, last), arch)[:64]
    return (alone != beside).any(axis=1)


def rule(largest):
    bias = np.append(np.arange(1, 65), largest)
    real = (bias.astype(f32) * UNIT).astype(f32)
    step = f32(real.max() / f32(2.0**28))
    steps = np.rint((real * f32(f32(1.0) / step)).astype(f32))
    added = np.trunc(((steps * step).astype(f32) / UNIT).astype(f32)).astype(int)
    return (added != bias)[:64]


seen = {(arch, last): moved(arch, last) for arch in (68, 73) for last in (64, 1000)}
for arch in (68, 73):
    small, large = (int(seen[arch, last].sum()) for last in (64, 1000))
    print(f"htp_arch {arch}, largest bias 64: {small} channels move; 1000: {large}")
same = bool((rule(1000) == seen[73, 1000]).all())
print(f"the rule says {int(rule(1000).sum())}, the same channels: {same}")
quiet = not any(seen[key].any() for key in ((68, 64), (68, 1000), (73, 64)))
sys.exit(0 if quiet and seen[73, 1000].sum() == 38 and same else 1)
PYTHON
"$folder/venv/bin/python" "$folder/probe.py"
