"""A builder of QDQ graphs, written by hand in the forms that lowering emits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mixport.targets import Target, load_target

f32 = np.float32


class QdqBuilder:
    """Adds nodes in order; every method gives the name of a tensor."""

    def __init__(self, *, shape: Sequence[int | str] = ("N", 3, 8, 8), opset: int = 21, seed: int = 0) -> None:
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

    def node(self, op: str, inputs: Sequence[str], *, name: str | None = None, output: str | None = None, **attributes: Any) -> str:
        output = output or self.fresh(op.lower())
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name or f"node_{output}", **attributes))
        return output

    def quantise(
        self, x: str, site: str, scale: float, zero_point: int = 0, *, clip: tuple[int, int] | None = None, dtype: str = "uint8"
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
        return self.node("DequantizeLinear", [codes, self.constant(scale), self.constant(np.dtype(dtype).type(zero_point))])

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
        return self.node("DequantizeLinear", [self.constant(codes.astype(np.int32), name), self.constant(scale)], axis=0)

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
        """Conv or Gemm with random integers; gives the float result. `x` is the float input where it is not plain DQ of the codes."""
        x_scale = self.quantisation[x_codes][0]
        limit = 2 ** (bits - 1) - 1
        codes = self.rng.integers(-limit - (bits == 2), limit + 1, tuple(shape))
        scale = (self.rng.random(shape[0]) * 0.02 + 0.005).astype(f32)
        inputs = [x or self.dequantise(x_codes), self.weight(codes, scale, bits=bits, name=f"{name}.weight")]
        if bias:
            inputs.append(self.bias(self.rng.integers(-300, 300, shape[0]), x_scale, scale, name=f"{name}.bias"))
        if op == "Gemm":
            attributes["transB"] = 1
        return self.node(op, inputs, name=name, output=f"{name}_sum", **attributes)

    def build(self, output: str, *, output_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
        """Rename nothing: `output` becomes an Identity-free graph output only when it has that name, else through Identity."""
        if output != "output":
            self.node("Identity", [output], output="output")
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info("output", output_type, None)],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10 if self.opset < 25 else 13)
        return model


def build_network(*, bits: int = 4, shape: Sequence[int | str] = ("N", 3, 8, 8), clip: int | None = 15, seed: int = 0) -> QdqBuilder:
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
    depth = b.layer("Conv", small, (8, 1, 3, 3), name="depthwise", bits=bits, group=8, strides=[2, 2], pads=[0, 0, 1, 1])
    b.quantise(depth, "depthwise", 0.06, 0, clip=bounds)
    b.quantise(b.node("GlobalAveragePool", [b.dequantise("depthwise")], name="pool"), "pool", 0.013, 0)
    flat = b.node("Flatten", ["pool"])
    b.quantisation[flat] = b.quantisation["pool"]
    b.layer("Gemm", flat, (10, 8), name="head")
    return b


@pytest.fixture
def qdq() -> Callable[..., QdqBuilder]:
    """The builder class."""
    return QdqBuilder


@pytest.fixture
def network() -> Callable[..., QdqBuilder]:
    """A small residual network; its float logits are `head_sum`."""
    return build_network


@pytest.fixture
def target() -> Target:
    return load_target("ort-cpu")


@pytest.fixture
def save(tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    """Write a model into a temporary file."""

    def write(model: onnx.ModelProto, name: str = "model.onnx") -> Path:
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return write
