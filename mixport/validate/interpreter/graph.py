"""An ONNX file as plain records: nodes in order, constants as NumPy arrays, who produces and who reads each
tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper

from mixport.records.errors import BadInputError

Array = NDArray[Any]

#: protobuf's own limit, and the size below which a bundle holds no external data.
MAX_FILE_BYTES = 2**31 - 1

_NARROW = {onnx.TensorProto.INT4, onnx.TensorProto.INT2}
_NARROW_UNSIGNED = {onnx.TensorProto.UINT4, onnx.TensorProto.UINT2}
_NOTHING: Mapping[str, Any] = {}

_NUMBER = re.compile(r"n\d+")
"""Names that lowering gives to quantisers and moves: the tensor that they give says more."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One ONNX node.

    Attributes:
        index: position in the file, which is a topological order.
        name: the node's name, or its first output where the file gives none, or a mere number.
        op: operator type; operators of other domains are spelt `domain::op`.
        inputs: tensor names, empty where an optional input is absent.
        outputs: tensor names.
        attributes: plain Python values; tensors are arrays.
    """

    index: int
    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)

    def input(self, position: int) -> str:
        """Tensor name at a position, empty when absent."""
        return self.inputs[position] if position < len(self.inputs) else ""


@dataclass(frozen=True, kw_only=True)
class Port:
    """A graph input or output: name, ONNX element type (TensorProto number) and shape (None where symbolic or
    unknown).
    """

    name: str
    elem_type: int
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A whole file.

    Attributes:
        proto: what was read; never changed.
        nodes: in file order.
        constants: initialisers; INT2 and INT4 ones as int8 arrays.
        stored: ONNX type name of every initialiser, e.g. INT4.
        inputs: without those that are initialisers.
        outputs: in file order.
        producer: node that makes a tensor.
        consumers: nodes that read a tensor, once for every input they read it at.
        opset: of the default domain.
    """

    proto: onnx.ModelProto
    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    stored: Mapping[str, str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    producer: Mapping[str, Node]
    consumers: Mapping[str, tuple[Node, ...]]
    opset: int

    @property
    def only_output(self) -> str:
        """Name of the one output. Raises BadInputError where there are others."""
        if len(self.outputs) != 1:
            raise BadInputError(
                f"the file has {len(self.outputs)} outputs, expected 1",
                hint="mixport writes models of one output; others can be inspected, not compared",
            )
        return self.outputs[0].name

    def is_output(self, tensor: str) -> bool:
        """True when a graph output has this name."""
        return any(port.name == tensor for port in self.outputs)


def load_model(model: Path | str | onnx.ModelProto) -> onnx.ModelProto:
    """Read a model file without running anything and without following external data.

    Raises:
        BadInputError: no such file, larger than 2 GB, not ONNX, or with external data.
    """
    if isinstance(model, onnx.ModelProto):
        return model
    path = Path(model)
    if not path.is_file():
        raise BadInputError(
            f"model file {path} does not exist", hint="mixport build ... writes model.onnx into its bundle"
        )
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BadInputError(
            f"model file {path} has {path.stat().st_size} bytes, allowed {MAX_FILE_BYTES}",
            hint="use a smaller model",
        )
    try:
        proto = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise BadInputError(f"model file {path} is not ONNX: {error}", hint="give a .onnx file") from error
    if not proto.graph.node:
        raise BadInputError(f"model file {path} holds no nodes", hint="give a .onnx file")
    return proto


def read_graph(model: Path | str | onnx.ModelProto) -> Graph:
    """Turn a file or a ModelProto into records.

    Raises:
        BadInputError: the file is damaged, holds external data, or its nodes are not in topological order.
    """
    proto = load_model(model)
    constants: dict[str, Array] = {}
    stored: dict[str, str] = {}
    for initializer in proto.graph.initializer:
        constants[initializer.name] = _array(initializer)
        stored[initializer.name] = onnx.TensorProto.DataType.Name(initializer.data_type)
    nodes = tuple(_node(index, node) for index, node in enumerate(proto.graph.node))
    inputs = tuple(_port(value) for value in proto.graph.input if value.name not in constants)
    producer: dict[str, Node] = {}
    consumers: dict[str, list[Node]] = {}
    known = set(constants) | {port.name for port in inputs} | {""}
    for node in nodes:
        for name in node.inputs:
            if name not in known:
                raise BadInputError(
                    (
                        f"node {node.name} ({node.op}) reads {name}, which no earlier node, input or "
                        "initialiser gives"
                    ),
                    hint="check the file with onnx.checker.check_model",
                )
            consumers.setdefault(name, []).append(node)
        for name in node.outputs:
            known.add(name)
            producer[name] = node
    return Graph(
        proto=proto,
        nodes=nodes,
        constants=constants,
        stored=stored,
        inputs=inputs,
        outputs=tuple(_port(value) for value in proto.graph.output),
        producer=producer,
        consumers={name: tuple(readers) for name, readers in consumers.items()},
        opset=next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0),
    )


def infer_shapes(
    model: onnx.ModelProto, *, feeds: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int | None, ...]]:
    """Shapes of all tensors when the graph inputs have these shapes, as far as ONNX shape inference knows
    them.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        if value.name in feeds:
            dims = value.type.tensor_type.shape.dim
            del dims[:]
            for size in feeds[value.name]:
                dims.add().dim_value = size
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    ports = [_port(v) for v in (*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input)]
    return {port.name: port.shape for port in ports if port.shape is not None}


def _array(tensor: onnx.TensorProto) -> Array:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise BadInputError(
            f"initialiser {tensor.name} is external data, which mixport does not read",
            hint="save the model in one file",
        )
    array: Array = numpy_helper.to_array(tensor)
    if tensor.data_type in _NARROW:
        return array.astype(np.int8)
    return array.astype(np.uint8) if tensor.data_type in _NARROW_UNSIGNED else array


def _node(index: int, node: onnx.NodeProto) -> Node:
    attributes: dict[str, Any] = {a.name: _attribute(a) for a in node.attribute}
    foreign = node.domain not in ("", "ai.onnx")
    own_name = "" if _NUMBER.fullmatch(node.name) else node.name
    return Node(
        index=index,
        name=own_name or next((o for o in node.output if o), node.name or f"node{index}"),
        op=f"{node.domain}::{node.op_type}" if foreign else node.op_type,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes=attributes,
    )


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value: Any = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return _array(value)
    return tuple(value) if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else value


def _port(value: onnx.ValueInfoProto) -> Port:
    tensor = value.type.tensor_type
    shape = (
        tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        if tensor.HasField("shape")
        else None
    )
    return Port(name=value.name, elem_type=tensor.elem_type, shape=shape)
