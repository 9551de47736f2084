"""Elementwise operators whose float result IEEE-754 fixes, and the integer arithmetic of shapes; each is one
NumPy call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from mixport.arithmetic import integer
from mixport.validate.interpreter.graph import Array, Node
from mixport.validate.interpreter.kernels_movement import Kernel

#: ONNX element types that Cast may give, with NumPy's name.
CAST_TYPES: Mapping[int, str] = MappingProxyType(
    {
        onnx.TensorProto.FLOAT: "float32",
        onnx.TensorProto.DOUBLE: "float64",
        onnx.TensorProto.INT64: "int64",
        onnx.TensorProto.INT32: "int32",
        onnx.TensorProto.INT16: "int16",
        onnx.TensorProto.INT8: "int8",
        onnx.TensorProto.UINT16: "uint16",
        onnx.TensorProto.UINT8: "uint8",
        onnx.TensorProto.BOOL: "bool",
    }
)


def _present(args: Sequence[Array | None]) -> list[Array]:
    return [a for a in args if a is not None]


def _pure(function: Callable[..., Any]) -> Kernel:
    def kernel(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
        with np.errstate(all="ignore"):
            return (np.asarray(function(*_present(args))),)

    return kernel


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.divide(a, b)
    # ONNX Div on integers truncates towards zero, NumPy floors.
    return (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(a.dtype)


def _variadic(function: Callable[[Array, Array], Array]) -> Kernel:
    def kernel(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
        return (reduce(function, _present(args)),)

    return kernel


def _clip(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    x, low, high = (*args, None, None)[:3]
    assert x is not None
    x = x if low is None else np.maximum(x, low)
    return (x if high is None else np.minimum(x, high),)


def _relu(x: Array) -> Array:
    return np.maximum(x, np.zeros((), x.dtype))


def _cast(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    x = args[0]
    assert x is not None
    return (x.astype(CAST_TYPES[node.attributes["to"]]),)


def _dequantise(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    """DequantizeLinear (21) whose scale, and zero point where it has one, are computed: per tensor, or along
    one axis.
    """
    codes, scale, zero_point = (*args, None)[:3]
    assert codes is not None and scale is not None
    zero_point = np.zeros((), np.int64) if zero_point is None else zero_point.astype(np.int64)
    if scale.ndim == 1:
        shape = [1] * codes.ndim
        shape[int(node.attributes.get("axis", 1))] = -1
        scale, zero_point = (
            scale.reshape(shape),
            zero_point if zero_point.ndim == 0 else zero_point.reshape(shape),
        )
    return (integer.dequantise(codes, scale=scale, zero_point=zero_point),)


ELEMENTWISE: Mapping[str, Kernel] = MappingProxyType(
    {
        "Add": _pure(np.add),
        "Sub": _pure(np.subtract),
        "Mul": _pure(np.multiply),
        "Div": _pure(_divide),
        "Neg": _pure(np.negative),
        "Abs": _pure(np.abs),
        "Sqrt": _pure(np.sqrt),
        "Relu": _pure(_relu),
        "Min": _variadic(np.minimum),
        "Max": _variadic(np.maximum),
        "Clip": _clip,
        "Cast": _cast,
        "DequantizeLinear": _dequantise,
        "Where": _pure(np.where),
        "Equal": _pure(np.equal),
        "Greater": _pure(np.greater),
        "GreaterOrEqual": _pure(np.greater_equal),
        "Less": _pure(np.less),
        "LessOrEqual": _pure(np.less_equal),
        "Not": _pure(np.logical_not),
        "And": _pure(np.logical_and),
        "Or": _pure(np.logical_or),
    }
)

#: Elementwise operators that give booleans whatever they read.
COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or"})


def shape_of(node: Node, shape: Sequence[int]) -> Array:
    """ONNX Shape (15) and Size (13) of a tensor with this shape."""
    if node.op == "Size":
        return np.asarray(np.prod(shape, dtype=np.int64), np.int64)
    return np.asarray(tuple(shape)[node.attributes.get("start", 0) : node.attributes.get("end")], np.int64)


def _constant(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    attributes = node.attributes
    if "value" in attributes:
        return (np.asarray(attributes["value"]),)
    for name, kind in (
        ("value_int", "int64"),
        ("value_ints", "int64"),
        ("value_float", "float32"),
        ("value_floats", "float32"),
    ):
        if name in attributes:
            return (np.asarray(attributes[name], kind),)
    raise KeyError(node.name)


def _constant_of_shape(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    sizes = args[0]
    assert sizes is not None
    fill = np.asarray(node.attributes.get("value", np.zeros(1, np.float32))).reshape(-1)
    return (np.full(tuple(int(s) for s in sizes), fill[0], fill.dtype),)


def _range(node: Node, args: Sequence[Array | None]) -> tuple[Array, ...]:
    start, limit, delta = _present(args)
    return (np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype),)


#: Operators that make a tensor out of sizes or attributes.
SOURCES: Mapping[str, Kernel] = MappingProxyType(
    {"Constant": _constant, "ConstantOfShape": _constant_of_shape, "Range": _range}
)
