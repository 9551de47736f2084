"""A builder of QDQ graphs, written by hand in the forms that lowering emits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

f32 = np.float32


class QdqBuilder:
    """Adds nodes in order; every method gives the name of a tensor."""

    def __init__(
        self, *, shape: Sequence[int | str] = ("N", 3, 8, 8), opset: int = 21, seed: int = 0
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.quantisation: dict[str, tuple[np.float32, int, str]] = {}
        self.shape, self.opset, self.count = list(shape), opset, 0

    def constant(self, array: Any, name: str | None = None) -> str:
        name = name or self.fresh("constant")
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        *,
        name: str | None = None,
        output: str | None = None,
        **attributes: Any,
    ) -> str:
        output = output or self.fresh(op.lower())
        self.nodes.append(
            helper.make_node(op, list(inputs), [output], name=name or f"node_{output}", **attributes)
        )
        return output

    def quantise(
        self,
        x: str,
        site: str,
        scale: float,
        zero_point: int = 0,
        *,
        clip: tuple[int, int] | None = None,
        dtype: str = "uint8",
    ) -> str:
        """QuantizeLinear (-> Clip); gives the codes, named as the site."""
        name = site if clip is None else f"{site}_raw"
        scale32 = f32(scale)
        parameters = [self.constant(scale32), self.constant(np.dtype(dtype).type(zero_point))]
        self.node("QuantizeLinear", [x, *parameters], output=name)
        if clip is not None:
            bounds = [self.constant(np.dtype(dtype).type(bound)) for bound in clip]
            self.node("Clip", [name, *bounds], output=site)
        self.quantisation[site] = (scale32, zero_point, dtype)
        return site

    def dequantise(self, codes: str, like: str | None = None) -> str:
        scale, zero_point, dtype = self.quantisation[like or codes]
        return self.node(
            "DequantizeLinear", [codes, self.constant(scale), self.constant(np.dtype(dtype).type(zero_point))]
        )

    def qdq(self, x: str, site: str, scale: float, zero_point: int = 0, **options: Any) -> str:
        return self.dequantise(self.quantise(x, site, scale, zero_point, **options))

    def weight(self, codes: np.ndarray, scale: np.ndarray, *, bits: int = 8, name: str = "weight") -> str:
        """int8, or packed INT4 / INT2 behind a Cast; gives the dequantised weight."""
        if bits in (2, 4):
            kind = TensorProto.INT2 if bits == 2 else TensorProto.INT4
            self.initializers.append(helper.make_tensor(name, kind, codes.shape, codes.astype(np.int8)))
            stored = self.node("Cast", [name], to=TensorProto.INT8)
        else:
            stored = self.constant(codes.astype(np.int8), name)
        zeros = self.constant(np.zeros(scale.size, np.int8))
        return self.node("DequantizeLinear", [stored, self.constant(scale.astype(f32)), zeros], axis=0)

    def bias(self, codes: np.ndarray, x_scale: np.float32, w_scale: np.ndarray, *, name: str = "bias") -> str:
        scale = (f32(x_scale) * w_scale.astype(f32)).astype(f32)
        return self.node(
            "DequantizeLinear", [self.constant(codes.astype(np.int32), name), self.constant(scale)], axis=0
        )

    def layer(
        self,
        op: str,
        x_codes: str,
        shape: Sequence[int],
        *,
        name: str,
        bits: int = 8,
        x: str | None = None,
        bias: bool = True,
        **attributes: Any,
    ) -> str:
        """Conv or Gemm with random integers; gives the float result. `x` is the float input where it is not
        plain DQ of the codes.
        """
        x_scale = self.quantisation[x_codes][0]
        limit = 2 ** (bits - 1) - 1
        codes = self.rng.integers(-limit - (bits == 2), limit + 1, tuple(shape))
        scale = (self.rng.random(shape[0]) * 0.02 + 0.005).astype(f32)
        inputs = [x or self.dequantise(x_codes), self.weight(codes, scale, bits=bits, name=f"{name}.weight")]
        if bias:
            inputs.append(
                self.bias(self.rng.integers(-300, 300, shape[0]), x_scale, scale, name=f"{name}.bias")
            )
        if op == "Gemm":
            attributes["transB"] = 1
        return self.node(op, inputs, name=name, output=f"{name}_sum", **attributes)

    def build(self, output: str, *, output_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
        """Rename nothing: `output` becomes an Identity-free graph output only when it has that name, else
        through Identity.
        """
        if output != "output":
            self.node("Identity", [output], output="output")
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info("output", output_type, None)],
            self.initializers,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=10 if self.opset < 25 else 13,
        )
        return model


def build_network(
    *, bits: int = 4, shape: Sequence[int | str] = ("N", 3, 8, 8), clip: int | None = 15, seed: int = 0
) -> QdqBuilder:
    """A residual network in miniature up to the float logits, which it leaves under `logits`."""
    b = QdqBuilder(shape=shape, opset=25 if bits == 2 else 21, seed=seed)
    bounds = None if clip is None else (0, clip)
    b.quantise("input", "input_codes", 0.03, 128)
    stem = b.layer("Conv", "input_codes", (8, 3, 3, 3), name="stem", pads=[1, 1, 1, 1])
    b.quantise(stem, "stem", 0.125, 0)
    low = b.quantise(b.dequantise("stem"), "stem.requantised", 0.9, 0, clip=bounds)
    branch = b.layer("Conv", low, (8, 8, 3, 3), name="branch", bits=bits, pads=[1, 1, 1, 1])
    b.quantise(branch, "branch", 0.25, 117)
    total = b.node("Add", [b.dequantise("branch"), b.dequantise("stem")], name="join")
    b.quantise(total, "join", 0.125, 3)
    small = b.quantise(b.dequantise("join"), "join.requantised", 1.1, 0, clip=bounds)
    depth = b.layer(
        "Conv", small, (8, 1, 3, 3), name="depthwise", bits=bits, group=8, strides=[2, 2], pads=[0, 0, 1, 1]
    )
    b.quantise(depth, "depthwise", 0.06, 0, clip=bounds)
    b.quantise(b.node("GlobalAveragePool", [b.dequantise("depthwise")], name="pool"), "pool", 0.013, 0)
    flat = b.node("Flatten", ["pool"])
    b.quantisation[flat] = b.quantisation["pool"]
    b.layer("Gemm", flat, (10, 8), name="head")
    return b


def build_transformer(*, seed: int = 0) -> QdqBuilder:
    """One attention block in miniature with an int16 stream, two kinds of islands, a table and shape
    arithmetic: logits in `logits_sum`.
    """
    b = QdqBuilder(seed=seed)
    tokens, width, heads = 16, 8, 2
    b.quantise("input", "input_codes", 0.03, 128)
    patches = b.layer("Conv", "input_codes", (width, 3, 2, 2), name="patches", strides=[2, 2])
    b.quantise(patches, "patches", 0.05, 128)
    rows = b.node("Reshape", ["patches", b.constant(np.array([0, width, tokens]))])
    rows = b.node("Transpose", [rows], perm=[0, 2, 1])
    position = b.constant((b.rng.normal(size=(1, tokens, width)) * 0.3).astype(f32))
    stream = b.quantise(
        b.node("Add", [b.dequantise(rows, "patches"), position]), "stream0", 0.001, 0, dtype="int16"
    )
    scale, shift = b.constant(np.ones(width, f32)), b.constant(np.zeros(width, f32))
    normed = b.node("LayerNormalization", [b.dequantise(stream), scale, shift], name="norm1", axis=-1)
    codes = b.quantise(normed, "norm1", 0.02, 128)
    # The batch size comes from a tensor behind the island, as an exporter may write it.
    batch = b.node("Gather", [b.node("Shape", [normed]), b.constant(np.array([0]))])
    flat = b.node("Reshape", [codes, b.constant(np.array([-1, width]))])
    b.quantisation[flat] = b.quantisation["norm1"]
    parts: list[str] = []
    for part in "qkv":
        b.quantise(b.layer("Gemm", flat, (width, width), name=part), part, 0.04, 128)
        shape = b.node("Concat", [batch, b.constant(np.array([tokens, heads, width // heads]))], axis=0)
        parts.append(
            b.node(
                "Transpose",
                [b.node("Reshape", [part, shape])],
                perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3],
            )
        )
    scores = b.node("MatMul", [b.dequantise(parts[0], "q"), b.dequantise(parts[1], "k")], name="scores")
    scaled = b.node("Mul", [scores, b.constant(f32(0.5))])
    b.quantise(b.node("Softmax", [scaled], name="softmax", axis=-1), "attention", 1 / 256, 0)
    b.quantise(
        b.node("MatMul", [b.dequantise("attention"), b.dequantise(parts[2], "v")], name="context"),
        "context",
        0.02,
        128,
    )
    back = b.node(
        "Reshape", [b.node("Transpose", ["context"], perm=[0, 2, 1, 3]), b.constant(np.array([-1, width]))]
    )
    b.quantisation[back] = b.quantisation["context"]
    b.quantise(b.layer("Gemm", back, (width, width), name="projection"), "projection", 0.03, 128)
    shape = b.node("Concat", [batch, b.constant(np.array([tokens, width]))], axis=0)
    branch = b.dequantise(b.node("Reshape", ["projection", shape]), "projection")
    b.quantise(
        b.node("Add", [branch, b.dequantise(stream)], name="residual"), "stream1", 0.001, 0, dtype="int16"
    )
    low = b.quantise(b.dequantise("stream1"), "mlp.input", 0.03, 128)
    table = b.constant(b.rng.integers(0, 256, 256).astype(np.uint8), "table")
    index = b.node("Cast", [low], to=TensorProto.INT32)
    b.node("Gather", [table, index], output="mlp.table", name="mlp.table")
    b.quantisation["mlp.table"] = (f32(0.02), 5, "uint8")
    first = b.node("Gather", ["mlp.table", b.constant(np.array(0))], axis=1)
    b.quantisation[first] = b.quantisation["mlp.table"]
    b.layer("Gemm", first, (10, width), name="logits")
    return b
