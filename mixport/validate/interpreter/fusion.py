"""What ONNX Runtime 1.31 and 1.32 fuse into one integer operator, as conditions on the graph (each put to it
in test_fusion_rules.py).

1. Conv, Gemm, MatMul, Add, Mul and GlobalAveragePool read DequantizeLinear outputs, possibly behind data
  movement in PROPAGATES.
2. Their only consumer is a QuantizeLinear, possibly behind such movement, or behind a Relu when the zero
  point is the type's minimum.
3. Gemm and MatMul may also have no QuantizeLinear: then they give floats. A Gemm weight needs an explicit
  zero point.
4. Everything is 8 bits wide, and the output has the type of the (first) input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mixport.arithmetic.definitions import ONNXRUNTIME, Definition, Operand
from mixport.arithmetic.dtypes import STORAGE_RANGE
from mixport.validate.interpreter.graph import Array, Graph, Node
from mixport.validate.interpreter.values import CODE_TYPES, Saturation, TensorInfo, Value

#: Movement that ONNX Runtime carries DequantizeLinear forward and QuantizeLinear backward across.
PROPAGATES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "MaxPool", "Identity"})

EIGHT_BIT = frozenset(map(np.dtype, ("uint8", "int8")))

FusedKind = Literal["conv", "gemm", "matmul", "add", "multiply", "average"]

FUSED_OPERATORS: Mapping[str, FusedKind] = {
    "Conv": "conv",
    "Gemm": "gemm",
    "MatMul": "matmul",
    "Add": "add",
    "Mul": "multiply",
    "GlobalAveragePool": "average",
}


@dataclass(frozen=True, kw_only=True)
class Fused:
    """A node that runs on integers.

    Attributes:
        saturation: output quantiser, None where the result is float32(acc) * float32(x_scale * w_scale).
        absorbed: nodes between the compute node and its QuantizeLinear, which comes last.
        warning: something in the file that the kernels ignore, or that keeps some of them from fusing; empty
            as a rule.
    """

    saturation: Saturation | None
    absorbed: tuple[Node, ...] = ()
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class NotFused:
    """A node that stays float, and why."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the rules look at: the graph, what is known of the tensors before the node, the constants, and the
    arithmetic of the device.
    """

    graph: Graph
    tensors: Mapping[str, TensorInfo]
    constants: Mapping[str, Value]
    definition: Definition = ONNXRUNTIME

    def constant(self, name: str) -> Array | None:
        """A constant array, None when the tensor is not one."""
        value = self.constants.get(name)
        return value if isinstance(value, np.ndarray) else None


def code_range(dtype: np.dtype[np.generic]) -> tuple[int, int]:
    """Smallest and largest code of a NumPy code type."""
    return STORAGE_RANGE[dtype.name]


def saturation_of(quantiser: Node, around: Surroundings) -> Saturation | NotFused:
    """Scale, zero point and range of a QuantizeLinear with constant per-tensor parameters."""
    scale = around.constant(quantiser.input(1))
    if scale is None or scale.size != 1 or scale.dtype != np.float32:
        return NotFused(reason="its scale is not one constant float32")
    zero_point = around.constant(quantiser.input(2)) if quantiser.input(2) else np.zeros((), np.uint8)
    if zero_point is None or zero_point.size != 1 or zero_point.dtype not in CODE_TYPES:
        return NotFused(reason="its zero point is not one constant code of 8 or 16 bits")
    low, high = code_range(zero_point.dtype)
    return Saturation(
        scale=np.float32(scale.reshape(-1)[0]),
        zero_point=int(zero_point.reshape(-1)[0]),
        low=low,
        high=high,
        dtype=zero_point.dtype,
    )


def fuse(node: Node, around: Surroundings) -> Fused | NotFused:
    """Decide whether a node of FUSED_OPERATORS runs on integers."""
    problem = _input_problem(node, around)
    if problem is not None:
        return NotFused(reason=problem)
    absorbed = _towards_quantiser(node, around.graph)
    if isinstance(absorbed, NotFused):
        may_be_float = (
            around.definition.float_products
            and node.op in ("Gemm", "MatMul")
            and not _blocks_float_output(node, around.graph)
        )
        return Fused(saturation=None, warning=_bias_warning(node, around)) if may_be_float else absorbed
    saturation = saturation_of(absorbed[-1], around)
    if isinstance(saturation, NotFused):
        return NotFused(reason=f"QuantizeLinear {absorbed[-1].name}: {saturation.reason}")
    return _check_output(node, saturation, absorbed, around)


def _check_output(
    node: Node, saturation: Saturation, absorbed: tuple[Node, ...], around: Surroundings
) -> Fused | NotFused:
    first = around.tensors[node.input(0)]
    if saturation.dtype != first.dtype:
        return NotFused(
            reason=(
                f"input codes are {first.dtype}, output codes are {saturation.dtype}: the fused operator "
                "needs one type"
            )
        )
    if any(n.op == "Relu" for n in absorbed) and saturation.zero_point != saturation.low:
        return NotFused(
            reason=(
                f"a Relu stands before a QuantizeLinear whose zero point {saturation.zero_point} is not "
                f"{saturation.low}"
            )
        )
    if node.op == "Add":
        refused = around.definition.refused_add(
            _operand(node.input(0), around), _operand(node.input(1), around), saturation.output
        )
        if refused:
            return NotFused(reason=f"{' + '.join(node.inputs)}: {refused}")
    return Fused(saturation=saturation, absorbed=absorbed, warning=_bias_warning(node, around))


def _operand(name: str, around: Surroundings) -> Operand:
    """Scale and zero point of codes that are not there yet."""
    info = around.tensors[name]
    quantisation = info.quantisation
    assert quantisation is not None and info.dtype is not None
    return Operand(
        codes=np.zeros(0, info.dtype),
        scale=quantisation.one_scale,
        zero_point=quantisation.one_zero_point,
        lowest=code_range(info.dtype)[0],
    )


def _bias_warning(node: Node, around: Surroundings) -> str:
    """Gemm adds the stored bias whatever its scale; Conv fuses only while the scale is within some percent of
    the product.
    """
    if node.op not in ("Conv", "Gemm") or not node.input(2):
        return ""
    x, w, bias = (around.tensors[node.input(i)].quantisation for i in range(3))
    assert x is not None and w is not None and bias is not None
    if np.array_equal(np.broadcast_to(x.one_scale * w.scale, bias.scale.shape), bias.scale):
        return ""
    return f"scale of bias {node.input(2)} is not x_scale * w_scale, so runtimes may add another bias"


def _towards_quantiser(node: Node, graph: Graph) -> tuple[Node, ...] | NotFused:
    chain: list[Node] = []
    tensor = node.outputs[0]
    while True:
        if graph.is_output(tensor):
            return NotFused(reason=f"its result {tensor} is a graph output, not quantised")
        readers = graph.consumers.get(tensor, ())
        if len(readers) != 1:
            return NotFused(reason=f"its result has {len(readers)} consumers, allowed one QuantizeLinear")
        reader = readers[0]
        chain.append(reader)
        if reader.op == "QuantizeLinear":
            return tuple(chain)
        if reader.op == "Relu" and len(chain) == 1:
            after = graph.consumers.get(reader.outputs[0], ())
            if len(after) == 1 and after[0].op == "QuantizeLinear":
                tensor = reader.outputs[0]
                continue
        if reader.op not in PROPAGATES or reader.input(0) != tensor:
            return NotFused(reason=f"{reader.op} {reader.name} stands where a QuantizeLinear should follow")
        tensor = reader.outputs[0]


def _blocks_float_output(node: Node, graph: Graph) -> bool:
    readers = graph.consumers.get(node.outputs[0], ())
    if any(reader.op == "QuantizeLinear" for reader in readers):
        return True
    if len(readers) != 1 or readers[0].op not in ("Relu", "Clip"):
        return False
    return any(after.op == "QuantizeLinear" for after in graph.consumers.get(readers[0].outputs[0], ()))


def _input_problem(node: Node, around: Surroundings) -> str | None:
    data_inputs = 2 if node.op in ("Add", "Mul", "MatMul") else 1
    for position in range(data_inputs):
        weight_like = node.op == "MatMul" and position == 1
        if problem := _activation_problem(node.input(position), around, weight_like=weight_like):
            return problem
    if node.op in ("Add", "Mul"):
        a, b = (around.tensors[name] for name in node.inputs)
        if a.constant and b.constant:
            return "both inputs are constant"
        return None if a.dtype == b.dtype else f"inputs have different code types, {a.dtype} and {b.dtype}"
    if node.op in ("Conv", "Gemm"):
        return _layer_problem(node, around)
    return None


def _activation_problem(name: str, around: Surroundings, *, weight_like: bool) -> str | None:
    info = around.tensors.get(name)
    if info is None or info.kind != "dequantised" or info.quantisation is None:
        return f"input {name} is not dequantised codes"
    if info.dtype not in EIGHT_BIT:
        return f"input {name} has {info.dtype} codes, allowed 8 bits"
    if weight_like and info.constant:
        return (
            None
            if not info.quantisation.zero_point.any() or info.quantisation.per_tensor
            else f"{name} has several zero points"
        )
    return None if info.quantisation.per_tensor else f"input {name} is quantised per axis"


def _layer_problem(node: Node, around: Surroundings) -> str | None:
    weight, bias = around.tensors.get(node.input(1)), node.input(2)
    if weight is None or weight.kind != "dequantised" or weight.quantisation is None or not weight.constant:
        return f"weight {node.input(1)} is not a dequantised constant"
    if weight.dtype not in EIGHT_BIT:
        return (
            f"weight {node.input(1)} has {weight.dtype} codes, allowed int8 (cast narrow types before "
            "DequantizeLinear)"
        )
    out_axis = 0 if node.op == "Conv" or node.attributes.get("transB", 0) else 1
    if not weight.quantisation.per_tensor and weight.quantisation.axis != out_axis:
        return (
            f"weight {node.input(1)} is quantised along axis {weight.quantisation.axis}, allowed {out_axis}"
        )
    if bias:
        info = around.tensors.get(bias)
        if info is None or info.kind != "dequantised" or info.dtype != np.dtype("int32") or not info.constant:
            return f"bias {bias} is not dequantised int32 codes"
    attributes = node.attributes
    if node.op == "Gemm":
        if not weight.quantisation.explicit_zero_point:
            return (
                f"DequantizeLinear of weight {node.input(1)} has no explicit zero point, so Gemm does "
                "not fuse"
            )
        plain = (
            attributes.get("alpha", 1.0) == 1.0
            and attributes.get("beta", 1.0) == 1.0
            and not attributes.get("transA", 0)
        )
        return None if plain else "alpha, beta or transA differ from their defaults"
    if attributes.get("auto_pad", "NOTSET") != "NOTSET":
        return f"auto_pad is {attributes['auto_pad']}, allowed explicit pads"
    array = around.constants.get(node.input(1))
    rank = getattr(getattr(array, "codes", None), "ndim", 0) - 2
    return None if rank in (1, 2) else f"{rank}-D convolution is not interpreted"
