"""Small QDQ graphs of one operator each with random parameters: what HTP's definition is held against, on the
simulator where it is installed, and on digests of the simulator's codes elsewhere.

`python -m tests.htp_forms` runs the simulator and writes the digests anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from mixport.arithmetic.definitions import DEFINITIONS
from mixport.records.runtime import RuntimeJob
from mixport.records.targets import load_target
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.runtimes import open_runtimes
from tests.unit.validate.qdq_graphs import QdqBuilder

RECORDED = Path(__file__).parent / "unit" / "arithmetic" / "definitions" / "htp_simulator.json"
ARCHES = ("htp68", "htp73")
SEEDS = (1, 2, 3)
CODES = "codes"
"""Name of the result."""

_VARIANCE = 73.0 * 73.0
"""Of a uniform 8-bit code."""


def _started(rng: np.random.Generator, shape: tuple[int, ...], *, dtype: str = "uint8") -> QdqBuilder:
    b = QdqBuilder(shape=shape)
    low = int(np.iinfo(dtype).min)
    b.quantise("input", "x", float(rng.uniform(0.01, 0.05)), low + int(rng.integers(0, 256)), dtype=dtype)
    return b


def _finished(b: QdqBuilder, result: str, rng: np.random.Generator, *, scale: float, **how: Any) -> None:
    dtype = how.pop("dtype", "uint8")
    zero_point = how.pop("zero_point", int(np.iinfo(dtype).min) + int(rng.integers(0, 256)))
    b.quantise(result, CODES, scale, zero_point, dtype=dtype, **how)
    b.node(
        "DequantizeLinear",
        [
            CODES,
            *(b.constant(np.asarray(one)) for one in (np.float32(scale), np.dtype(dtype).type(zero_point))),
        ],
        output="output",
    )


def convolution(
    rng: np.random.Generator,
    *,
    kernel: int = 3,
    group: int = 1,
    cin: int = 16,
    cout: int = 16,
    bias: int = 0,
    dtype: str = "uint8",
    fine: bool = False,
    per_tensor: bool = False,
    relu: bool = False,
    limit: int = 127,
    **attributes: Any,
) -> QdqBuilder:
    """Conv with constant weights; `bias` is the largest bias code, and `fine` shows every unit of it."""
    b = _started(rng, (1, cin, 16, 16), dtype=dtype)
    codes = rng.integers(-limit, limit + 1, (cout, cin // group, kernel, kernel))
    codes = np.ones_like(codes) if fine else codes
    scale = (rng.uniform(0.2, 1.0, cout) * 0.01).astype(np.float32)
    scale = np.full(cout, scale[0]) if per_tensor else scale
    x_scale = b.quantisation["x"][0]
    inputs = [b.dequantise("x"), b.weight(codes, scale)]
    if bias:
        inputs.append(b.bias(rng.integers(-bias, bias + 1, cout), x_scale, scale))
    y = b.node("Conv", inputs, group=group, pads=[kernel // 2] * 4, **attributes)
    spread = np.sqrt(codes[0].size * _VARIANCE * limit * limit / 3)
    spread = 60 * 6.7 if fine else spread
    lowest = int(np.iinfo(dtype).min)
    how: dict[str, Any] = {"zero_point": lowest} if relu else {}
    y = b.node("Relu", [y]) if relu else y
    _finished(b, y, rng, scale=float(x_scale * scale.mean() * spread / 60), dtype=dtype, **how)
    return b


def near_ties(rng: np.random.Generator) -> QdqBuilder:
    """Conv whose zero point, in units of the sums, lies within some float32 steps of a half in every channel,
    and biases.
    """
    b = _started(rng, (1, 1, 16, 16))
    x_scale, scale, zero_point = b.quantisation["x"][0], float(rng.uniform(0.004, 0.01)), 120
    y_scale = float(np.float32(x_scale * scale * 6.7))
    whole = zero_point * y_scale / float(x_scale)
    halves = np.floor(rng.uniform(1.02, 1.9, 64) * whole / scale) + 0.5
    scales = (whole / halves).astype(np.float32)
    for step in (1.0, 0.0):
        scales = np.where(rng.random(64) < 0.4, np.nextafter(scales, np.float32(step)), scales)
    bias = b.bias(rng.integers(-500, 501, 64), x_scale, scales)
    y = b.node("Conv", [b.dequantise("x"), b.weight(np.ones((64, 1, 1, 1), np.int64), scales), bias])
    _finished(b, y, rng, scale=y_scale, zero_point=zero_point)
    return b


def product(rng: np.random.Generator, *, op: str) -> QdqBuilder:
    """Gemm or MatMul with constant weights."""
    b = _started(rng, (4, 48))
    codes, scale = rng.integers(-127, 128, (20, 48)), (rng.uniform(0.2, 1.0, 20) * 0.01).astype(np.float32)
    x_scale = b.quantisation["x"][0]
    if op == "Gemm":
        y = b.node("Gemm", [b.dequantise("x"), b.weight(codes, scale)], transB=1)
    else:
        stored, zeros = b.constant(codes.T.astype(np.int8)), b.constant(np.zeros(20, np.int8))
        weight = b.node("DequantizeLinear", [stored, b.constant(scale), zeros], axis=1)
        y = b.node("MatMul", [b.dequantise("x"), weight])
    _finished(b, y, rng, scale=float(x_scale * scale.mean() * np.sqrt(48 * _VARIANCE**2) / 60))
    return b


def pair(rng: np.random.Generator, *, op: str) -> QdqBuilder:
    """Add or Mul of the input at two scales; the second one is a requantisation of the first."""
    b = _started(rng, (1, 1, 16, 16))
    first = float(b.quantisation["x"][0])
    b.quantise(b.dequantise("x"), "second", first * float(rng.uniform(0.4, 2.5)), int(rng.integers(0, 256)))
    y = b.node(op, [b.dequantise("x"), b.dequantise("second")])
    scale = first * first * rng.uniform(20, 200) if op == "Mul" else first * rng.uniform(0.5, 3.0)
    _finished(b, y, rng, scale=float(scale))
    return b


def average(rng: np.random.Generator) -> QdqBuilder:
    """GlobalAveragePool."""
    side = int(rng.integers(4, 15))
    b = _started(rng, (1, 32, side, side))
    y = b.node("GlobalAveragePool", [b.dequantise("x")])
    _finished(b, y, rng, scale=float(b.quantisation["x"][0] / rng.uniform(1, 6)))
    return b


def rescaled(rng: np.random.Generator) -> QdqBuilder:
    """DequantizeLinear, a move, QuantizeLinear with another scale."""
    b = _started(rng, (1, 1, 16, 16))
    moved = b.node("Transpose", [b.dequantise("x")], perm=[0, 1, 3, 2])
    scale, zero_point, _ = b.quantisation["x"]
    b.quantise(moved, "moved", float(scale), zero_point)
    _finished(b, b.dequantise("moved"), rng, scale=float(scale) * float(rng.uniform(0.3, 6.0)))
    return b


FORMS: Mapping[str, Callable[[np.random.Generator], QdqBuilder]] = MappingProxyType(
    {
        "conv 1x1": lambda rng: convolution(rng, kernel=1, cin=64),
        "conv 3x3": convolution,
        "conv 3x3, few channels": lambda rng: convolution(rng, cin=3),
        "conv 5x5, stride 2": lambda rng: convolution(rng, kernel=5, cin=8, strides=[2, 2]),
        "conv 3x3, groups": lambda rng: convolution(rng, group=2),
        "conv 3x3, per tensor": lambda rng: convolution(rng, per_tensor=True),
        "conv 3x3, relu": lambda rng: convolution(rng, relu=True),
        "conv 3x3, 4-bit codes": lambda rng: convolution(rng, limit=7),
        "conv 3x3, int8": lambda rng: convolution(rng, dtype="int8"),
        "conv 3x3, bias": lambda rng: convolution(rng, bias=20_000),
        "conv 1x1, every unit of a bias": lambda rng: convolution(
            rng, kernel=1, cin=1, cout=64, bias=600, fine=True
        ),
        "conv 1x1, per tensor, every unit of a bias": lambda rng: convolution(
            rng, kernel=1, cin=1, cout=64, bias=600, fine=True, per_tensor=True
        ),
        "conv 1x1, zero points next to ties": near_ties,
        "depthwise": lambda rng: convolution(rng, group=16),
        "depthwise, stride 2": lambda rng: convolution(rng, group=16, strides=[2, 2]),
        "gemm": lambda rng: product(rng, op="Gemm"),
        "matmul": lambda rng: product(rng, op="MatMul"),
        "add": lambda rng: pair(rng, op="Add"),
        "mul": lambda rng: pair(rng, op="Mul"),
        "average": average,
        "rescale": rescaled,
    }
)


def made(form: str, seed: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]]]:
    """The graph, and floats that reach every code of its input."""
    rng = np.random.default_rng([sorted(FORMS).index(form), seed])
    b = FORMS[form](rng)
    model = b.build("output")
    shape = tuple(int(size) for size in b.shape)
    scale, zero_point, dtype = b.quantisation["x"]
    low = int(np.iinfo(dtype).min)
    codes = low + rng.integers(0, 256, shape)
    codes.reshape(-1)[:256] = low + np.arange(256)[: codes.size]
    return model, {"input": ((codes - zero_point) * scale).astype(np.float32)}


def defined(form: str, seed: int, arch: str) -> np.ndarray[Any, Any]:
    """Codes by our definition."""
    model, feeds = made(form, seed)
    return Interpreter(model, definition=DEFINITIONS[arch]).run_feeds(feeds).codes[CODES]


def simulated(arch: str) -> dict[tuple[str, int], np.ndarray[Any, Any] | str]:
    """Codes by the simulator, or why it refused."""
    (runtime,) = open_runtimes([f"qnn-{arch}"])
    keys = [(form, seed) for form in FORMS for seed in SEEDS]
    jobs: list[RuntimeJob] = []
    for form, seed in keys:
        model, feeds = made(form, seed)
        jobs.append(RuntimeJob(model=model.SerializeToString(), feeds=[feeds], outputs=("output",)))
    _, answers = runtime.run(jobs, policy=load_target("onnx-int8").session)
    found: dict[tuple[str, int], np.ndarray[Any, Any] | str] = {}
    for (form, seed), answer in zip(keys, answers, strict=True):
        if answer.refused:
            found[form, seed] = answer.refused
            continue
        b = FORMS[form](np.random.default_rng([sorted(FORMS).index(form), seed]))
        scale, zero_point, dtype = b.quantisation[CODES]
        real = answer.runs[0]["output"].astype(np.float64) / np.float64(scale)
        found[form, seed] = (np.rint(real) + zero_point).astype(dtype)
    return found


def digest(codes: np.ndarray[Any, Any]) -> str:
    """Of the codes, their type and their shape."""
    text = f"{codes.dtype} {codes.shape} "
    return hashlib.sha256(text.encode() + np.ascontiguousarray(codes).tobytes()).hexdigest()[:16]


def main() -> None:
    """Write the digests of the simulator's codes."""
    document: dict[str, Any] = {"simulator": "onnxruntime-qnn 2.7.0, onnxruntime 1.31.1", "codes": {}}
    for arch in ARCHES:
        for (form, seed), codes in simulated(arch).items():
            assert not isinstance(codes, str), f"{form}: {codes}"
            document["codes"][f"{arch}/{form}/{seed}"] = digest(codes)
    RECORDED.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
