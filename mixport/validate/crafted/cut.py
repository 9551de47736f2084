"""Cut one fused unit out of a file: a model whose inputs are code tensors and whose output is the unit's
own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from mixport.records.errors import InvariantError
from mixport.validate.interpreter.fused_units import CodeInput, FusedUnit
from mixport.validate.interpreter.graph import Graph


def cut_unit(unit: FusedUnit, graph: Graph, *, ranks: Sequence[int]) -> onnx.ModelProto:
    """Build the unit's own model: the very nodes and initialisers of the file.

    Args:
        unit: what to cut; `unit.uncut` must be empty.
        graph: the whole file.
        ranks: number of axes of every input, all of them symbolic.

    Raises:
        InvariantError: the unit cannot be cut.
    """
    if unit.uncut:
        raise InvariantError(f"unit {unit.node.name} cannot be cut: {unit.uncut}")
    indices = {node.index for node in unit.nodes}
    given = {code_input.name for code_input in unit.inputs}
    needed = {name for node in unit.nodes for name in node.inputs if name}
    waiting = [name for name in needed if name not in given]
    while waiting:
        node = graph.producer.get(waiting.pop())
        if node is not None and node.index not in indices:
            indices.add(node.index)
            needed.update(node.inputs)
            waiting.extend(name for name in node.inputs if name not in given)
    inputs = [
        helper.make_tensor_value_info(
            code_input.name,
            helper.np_dtype_to_tensor_dtype(np.dtype(code_input.dtype)),
            [f"{code_input.name}_axis{axis}" for axis in range(rank)],
        )
        for code_input, rank in zip(_distinct(unit), ranks, strict=True)
    ]
    elem_type = TensorProto.FLOAT
    if unit.saturation is not None:
        elem_type = helper.np_dtype_to_tensor_dtype(unit.saturation.dtype)
    elif unit.kind == "table":
        elem_type = helper.np_dtype_to_tensor_dtype(graph.constants[unit.node.input(0)].dtype)
    small = helper.make_graph(
        [graph.proto.graph.node[index] for index in sorted(indices)],
        f"unit {unit.output}",
        inputs,
        [helper.make_tensor_value_info(unit.output, elem_type, None)],
        [initializer for initializer in graph.proto.graph.initializer if initializer.name in needed],
    )
    return helper.make_model(
        small, opset_imports=list(graph.proto.opset_import), ir_version=graph.proto.ir_version
    )


def input_names(unit: FusedUnit) -> tuple[str, ...]:
    """Names of the unit's inputs, each once."""
    return tuple(code_input.name for code_input in _distinct(unit))


def _distinct(unit: FusedUnit) -> list[CodeInput]:
    return list({code_input.name: code_input for code_input in unit.inputs}.values())
