#!/usr/bin/env bash
# onnxruntime 1.32.0 (CPU, x64), onnxruntime-web 1.30.0 (WASM under Node 20), onnx 1.23.2, numpy 2.4.6.
#
# A Mul of two uint8 tensors between DequantizeLinear and QuantizeLinear becomes QLinearMul on both runtimes, and both start from the same
# integers. The codes differ all the same for a few products near a tie: the native kernel multiplies the integer product by one factor
# a_scale * b_scale / y_scale, the WASM kernel multiplies each code by its scale first and divides last. Each is what NumPy gives in float32 in
# that order. Convolutions and matrix products do not differ so: their kernels share one order.
#
# Output seen (of 65,536 products):
#   native differs from WASM in 4 codes, by at most 1
#   native is integer product times one factor: True
#   WASM is code times scale, first: True
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
(cd "$folder" && npm init --yes >/dev/null && npm install --silent --no-audit --no-fund onnxruntime-web@1.30.0 >/dev/null)
cat >"$folder/native.py" <<'PYTHON'
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

scale_a, zero_a, scale_b, scale_y, zero_y = np.float32(0.0216), 204, np.float32(1 / 256), np.float32(0.0173), 127
constants = {"sa": scale_a, "za": np.uint8(zero_a), "sb": scale_b, "zb": np.uint8(0), "sy": scale_y, "zy": np.uint8(zero_y)}
nodes = [
    helper.make_node("DequantizeLinear", ["a", "sa", "za"], ["x"]),
    helper.make_node("DequantizeLinear", ["b", "sb", "zb"], ["w"]),
    helper.make_node("Mul", ["x", "w"], ["product"]),
    helper.make_node("QuantizeLinear", ["product", "sy", "zy"], ["y"]),
]
graph = helper.make_graph(
    nodes,
    "g",
    [helper.make_tensor_value_info(name, TensorProto.UINT8, [256, 256]) for name in "ab"],
    [helper.make_tensor_value_info("y", TensorProto.UINT8, [256, 256])],
    [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
open("model.onnx", "wb").write(model)
a, b = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
feeds = {"a": a.astype(np.uint8), "b": b.astype(np.uint8)}
ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)[0].tofile("native.bin")


def codes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values + np.float32(zero_y)), 0, 255).astype(np.uint8)


one_factor = ((a - zero_a) * b).astype(np.float32) * np.float32(np.float32(scale_a * scale_b) / scale_y)
scales_first = (a - zero_a).astype(np.float32) * scale_a * (b.astype(np.float32) * scale_b) / scale_y
codes(one_factor).tofile("one_factor.bin")
codes(scales_first).tofile("scales_first.bin")
PYTHON
cat >"$folder/compare.mjs" <<'JAVASCRIPT'
import fs from "node:fs";
import * as ort from "onnxruntime-web";

ort.env.wasm.numThreads = 1;
const a = Uint8Array.from({ length: 65536 }, (_, i) => i >> 8);
const b = Uint8Array.from({ length: 65536 }, (_, i) => i & 255);
const session = await ort.InferenceSession.create(fs.readFileSync("model.onnx"), { executionProviders: ["wasm"] });
const feeds = { a: new ort.Tensor("uint8", a, [256, 256]), b: new ort.Tensor("uint8", b, [256, 256]) };
const wasm = (await session.run(feeds)).y.data;
const native = fs.readFileSync("native.bin");
const distances = Array.from(wasm, (code, i) => Math.abs(code - native[i]));
const differing = distances.filter((distance) => distance > 0).length;
const oneFactor = Buffer.compare(native, fs.readFileSync("one_factor.bin")) === 0;
const scalesFirst = Buffer.compare(Buffer.from(wasm), fs.readFileSync("scales_first.bin")) === 0;
console.log(`native differs from WASM in ${differing} codes, by at most ${Math.max(...distances)}`);
console.log(`native is integer product times one factor: ${oneFactor ? "True" : "False"}`);
console.log(`WASM is code times scale, first: ${scalesFirst ? "True" : "False"}`);
process.exit(differing === 4 && oneFactor && scalesFirst ? 0 : 1);
JAVASCRIPT
cd "$folder"
"$folder/venv/bin/python" native.py
node compare.mjs
