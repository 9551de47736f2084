"""Element types and lengths of a file's tensors by ONNX's own inference, and which float sums are sums of
integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from mixport.arithmetic.dtypes import STORAGE_RANGE
from mixport.validate.interpreter.graph import Array, Graph, Node

#: Up to here a float type holds every integer.
_INTEGERS: Mapping[str, int] = {"float32": 2**24, "float64": 2**53}


@dataclass(frozen=True, kw_only=True)
class TensorTypes:
    """Types of one file.

    Attributes:
        graph: the file.
        dtypes: NumPy type names by tensor, as far as they can be inferred.
        shapes: by tensor; None for symbolic sizes.
    """

    graph: Graph
    dtypes: Mapping[str, str]
    shapes: Mapping[str, tuple[int | None, ...]]

    def dtype(self, tensor: str) -> str:
        """NumPy type name, empty where it is unknown."""
        return self.dtypes.get(tensor, "")

    def exact_sum(self, node: Node) -> bool:
        """True where a ReduceSum adds integers whose sum its float type holds, whatever they are."""
        axes = self.graph.constants.get(node.input(1))
        shape = self.shapes.get(node.input(0))
        largest = self._magnitude(node.input(0))
        limit = _INTEGERS.get(self.dtype(node.outputs[0]))
        if axes is None or shape is None or largest is None or limit is None:
            return False
        count = 1
        every = not axes.size and not node.attributes.get("noop_with_empty_axes", 0)
        for axis in range(len(shape)) if every else axes.reshape(-1):
            size = shape[int(axis)]
            if size is None:
                return False
            count *= size
        return count * largest <= limit

    def _magnitude(self, tensor: str) -> int | None:
        """Largest |value| where the values are integers, or all of them so many times a power of two: codes,
        and products of such.
        """
        node = self.graph.producer.get(tensor)
        if node is None:
            return None
        if node.op == "Cast":
            limits = STORAGE_RANGE.get(self.dtype(node.input(0)))
            return None if limits is None else max(abs(limits[0]), abs(limits[1]))
        if node.op == "DequantizeLinear":
            return self._of_codes(node)
        if node.op == "Mul":
            factors = [self._magnitude(name) for name in node.inputs]
            return None if factors[0] is None or factors[1] is None else factors[0] * factors[1]
        return None

    def _of_codes(self, node: Node) -> int | None:
        """Largest |code - zero point| of a DequantizeLinear whose scale is a power of two."""
        limits = STORAGE_RANGE.get(self.dtype(node.input(0)))
        scale, zero_point = (self.graph.constants.get(node.input(place)) for place in (1, 2))
        if limits is None or scale is None or zero_point is None or not _is_power_of_two(scale):
            return None
        return max(abs(limit - int(zero_point.reshape(-1)[0])) for limit in limits)


def _is_power_of_two(scale: Array) -> bool:
    return scale.size == 1 and bool(np.frexp(scale.reshape(-1)[0])[0] == 0.5)


def tensor_types(graph: Graph, *, input_shape: tuple[int, ...] | None = None) -> TensorTypes:
    """Infer types and shapes.

    Args:
        graph: the file.
        input_shape: of its first input, in place of the file's symbolic one.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.proto)
    if input_shape is not None:
        dims = next(
            value for value in model.graph.input if value.name == graph.inputs[0].name
        ).type.tensor_type.shape.dim
        del dims[:]
        for size in input_shape:
            dims.add().dim_value = size
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    dtypes: dict[str, str] = {name: array.dtype.name for name, array in graph.constants.items()}
    shapes: dict[str, tuple[int | None, ...]] = {name: array.shape for name, array in graph.constants.items()}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        if tensor.elem_type:
            dtypes[value.name] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim
            )
    return TensorTypes(graph=graph, dtypes=dtypes, shapes=shapes)
