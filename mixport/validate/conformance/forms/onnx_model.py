"""Small ONNX models written node by node, in the forms that lowering emits: opset 21 (25 with INT2), raw
initialisers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import TensorProto, helper, numpy_helper

from mixport.validate.interpreter.graph import Array

_OPSET, _IR_VERSION = 21, 10
_OPSET_INT2, _IR_VERSION_INT2 = 25, 13
_PACKED = {2: TensorProto.INT2, 4: TensorProto.INT4}


class Model:
    """Adds nodes in order; every method gives the name of a tensor."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._int2 = False

    def input(self, name: str, dtype: DTypeLike, rank: int) -> str:
        """A graph input, every axis symbolic."""
        axes = [f"{name}_axis{axis}" for axis in range(rank)]
        self._inputs.append(
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), axes)
        )
        return name

    def constant(self, value: Any, dtype: DTypeLike | None = None) -> str:
        """An initialiser with raw data."""
        name = f"c{len(self._initializers)}"
        self._initializers[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """A node of the default domain; gives its first output, the others are called `NAME_1` and so on."""
        name = f"t{len(self._nodes)}"
        names = [name, *(f"{name}_{index}" for index in range(1, outputs))]
        self._nodes.append(
            helper.make_node(op, list(inputs), names, name=f"{op}_{len(self._nodes)}", **attributes)
        )
        return name

    def quantise(
        self,
        x: str,
        scale: float,
        zero_point: int,
        *,
        dtype: DTypeLike = np.uint8,
        clip: tuple[int, int] | None = None,
    ) -> str:
        """QuantizeLinear, with an integer Clip behind it for codes narrower than their type."""
        codes = self.node(
            "QuantizeLinear", x, self.constant(scale, np.float32), self.constant(zero_point, dtype)
        )
        return codes if clip is None else self.clip(codes, clip, dtype=dtype)

    def dequantise(self, codes: str, scale: float, zero_point: int, *, dtype: DTypeLike = np.uint8) -> str:
        """DequantizeLinear per tensor."""
        return self.node(
            "DequantizeLinear", codes, self.constant(scale, np.float32), self.constant(zero_point, dtype)
        )

    def clip(self, codes: str, bounds: tuple[int, int], *, dtype: DTypeLike = np.uint8) -> str:
        """Clip on codes."""
        return self.node("Clip", codes, *(self.constant(bound, dtype) for bound in bounds))

    def weight(self, codes: Array, scale: Array, *, bits: int) -> str:
        """Dequantised weight along axis 0: int8, or packed INT4 / INT2 behind a Cast, with an explicit zero
        point.
        """
        if bits in _PACKED:
            name = f"c{len(self._initializers)}"
            packed = helper.make_tensor(name, _PACKED[bits], codes.shape, pack(codes, bits=bits), raw=True)
            self._initializers[name] = packed
            self._int2 = self._int2 or bits == 2
            stored = self.node("Cast", name, to=TensorProto.INT8)
        else:
            stored = self.constant(codes, np.int8)
        zeros = np.zeros(len(scale), np.int8)
        return self.node(
            "DequantizeLinear", stored, self.constant(scale, np.float32), self.constant(zeros), axis=0
        )

    def bias(self, codes: Array, scale: Array) -> str:
        """Dequantised int32 bias along axis 0, without a zero point."""
        return self.node(
            "DequantizeLinear", self.constant(codes, np.int32), self.constant(scale, np.float32), axis=0
        )

    def build(self, outputs: Mapping[str, DTypeLike]) -> onnx.ModelProto:
        """The model, with these tensors as outputs."""
        graph = helper.make_graph(
            self._nodes,
            "form",
            self._inputs,
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None)
                for name, dtype in outputs.items()
            ],
            list(self._initializers.values()),
        )
        opset, ir_version = (_OPSET_INT2, _IR_VERSION_INT2) if self._int2 else (_OPSET, _IR_VERSION)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def pack(codes: Array, *, bits: int) -> bytes:
    """Codes of 2 or 4 bits as ONNX stores them: the first one in the lowest bits of a byte."""
    per_byte = 8 // bits
    flat = codes.reshape(-1).astype(np.int64) & ((1 << bits) - 1)
    padded = np.concatenate([flat, np.zeros(-len(flat) % per_byte, np.int64)]).reshape(-1, per_byte)
    shifts: Sequence[int] = range(0, 8, bits)
    return (padded << np.asarray(shifts)).sum(axis=1).astype(np.uint8).tobytes()
