"""Small operations on onnx-ir graphs that several passes need: constants, new nodes, quantisation parameters
of a DequantizeLinear.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

SITE, LAYER, UNDOES = "mixport.site", "mixport.layer", "mixport.undoes"
"""What a tensor can be marked as: the codes of a site, the weight of a layer, codes of an operator that only
undo a DequantizeLinear. Names say nothing before the last pass gives them: users call their modules as they
like.
"""


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    """The array behind an initialiser or a Constant node, else None."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def initializer(
    graph: ir.Graph, name: str, array: NDArray[Any], *, dtype: ir.DataType | None = None
) -> ir.Value:
    """The initialiser `name`, made on first use, numbered where one of other content has it: users call their
    modules as they like.

    Raw data always: lists would be stored as varints.
    """
    tensor = ir.Tensor(np.asarray(array)) if dtype is None else ir.Tensor(np.asarray(array), dtype=dtype)
    free, n = name, 1
    while (existing := graph.initializers.get(free)) is not None:
        if content_of(existing) == content_of(tensor):
            return existing
        n += 1
        free = f"{name}_{n}"
    tensor.name = free
    value = ir.Value(name=free, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def content_of(tensor: ir.Value | ir.TensorProtocol) -> tuple[ir.DataType, tuple[int, ...], bytes] | None:
    """Type, shape and bytes of a tensor or an initialiser: equal for those that can stand for each other.
    None where it has no value.
    """
    held = tensor.const_value if isinstance(tensor, ir.Value) else tensor
    return None if held is None else (held.dtype, tuple(held.shape.numpy()), held.tobytes())


def mark(value: ir.Value, what: str, name: str) -> None:
    """Mark a tensor as SITE, LAYER or UNDOES, with the name that goes with it; the file holds no marks."""
    cast("dict[str, str]", value.meta)[what] = name


def marked(value: ir.Value | None, what: str) -> str | None:
    """The name that goes with a mark, None where there is no such mark."""
    return None if value is None else cast("dict[str, str]", value.meta).get(what)


def node(
    op_type: str, inputs: list[ir.Value | None], *, output: str, name: str | None = None, **attributes: Any
) -> ir.Node:
    """A standard node with one named output."""
    made = ir.Node(
        "",
        op_type,
        inputs,
        ir.convenience.convert_attributes(attributes) if attributes else (),
        num_outputs=1,
        name=name,
    )
    made.outputs[0].name = output
    return made


def replace(old: ir.Value, new: ir.Value) -> None:
    """Every reader of `old`, graph outputs included, reads `new`."""
    if old.is_graph_output():
        new.type, new.shape = new.type or old.type, new.shape or old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The standard node of this type that `value` comes from, else None."""
    producer = value.producer() if value is not None else None
    is_it = producer is not None and producer.op_type == op_type and producer.domain in {"", "ai.onnx"}
    return producer if is_it else None


def is_op(value: ir.Value | None, op_type: str) -> bool:
    """True when `value` comes from a standard node of this type."""
    return made_by(value, op_type) is not None


class Quantization(NamedTuple):
    """Of one tensor.

    Attributes:
        scale: real value of one step.
        zero_point: code of real 0.
        storage: type of the codes, e.g. uint8.
    """

    scale: float
    zero_point: int
    storage: str


def quantization_of(qdq: ir.Node) -> Quantization | None:
    """Of a per-tensor Quantize- or DequantizeLinear; None where it is per-axis."""
    scale, zero_point = constant_of(qdq.inputs[1]), constant_of(qdq.inputs[2])
    if scale is None or zero_point is None or scale.size != 1:
        return None
    return Quantization(scale=float(scale), zero_point=int(zero_point), storage=str(zero_point.dtype))


def storages(graph: ir.Graph) -> set[str]:
    """Types of the initialisers, e.g. int4."""
    return {
        value.const_value.dtype.name.lower()
        for value in graph.initializers.values()
        if value.const_value is not None
    }


def remove_dead(graph: ir.Graph) -> None:
    """Remove nodes whose results nobody reads, and initialisers that nobody reads."""
    kept = {id(v) for v in graph.outputs}
    for n in reversed(list(graph)):
        if all(not v.uses() and id(v) not in kept for v in n.outputs):
            graph.remove(n, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and id(value) not in kept:
            del graph.initializers[name]
