"""All float islands of a file, and what stands between the last codes and the output, as one model that reads
codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from mixport.validate.interpreter.execution_plan import ExecutionPlan


@dataclass(frozen=True, kw_only=True)
class CutIslands:
    """The model, the inputs it has, by name, with the code tensor of the whole file (or the image) that each
    reads, and its outputs.
    """

    model: onnx.ModelProto
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]


def cut_islands(plan: ExecutionPlan, *, sites: Sequence[str], outputs: Sequence[str]) -> CutIslands:
    """Cut out everything between code tensors and some results.

    Args:
        plan: of the file.
        sites: code tensors that can be given, where the cut is made; those in `outputs` are cut behind, too.
        outputs: sites behind float islands, and graph outputs.
    """
    graph = plan.graph
    given = {*sites, *(port.name for port in graph.inputs)}
    indices: set[int] = set()
    needed: set[str] = set()
    waiting = list(outputs)
    while waiting:
        node = graph.producer.get(waiting.pop())
        if node is None or node.index in indices:
            continue
        indices.add(node.index)
        for name in node.inputs:
            needed.add(name)
            if name and name not in given:
                waiting.append(name)
    made = {name for index in indices for name in graph.nodes[index].outputs}
    inputs = sorted(name for name in needed if name in given and name not in made)
    # A site that the cut both gives and reads is read as given: downstream of it, the codes are those of the
    # whole file.
    renamed = {name: f"{name}/given" for name in needed & made & given}
    nodes: list[onnx.NodeProto] = []
    for index in sorted(indices):
        node = onnx.NodeProto()
        node.CopyFrom(graph.proto.graph.node[index])
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
        nodes.append(node)
    ports = [_port(plan, name, name) for name in inputs] + [
        _port(plan, name, new) for name, new in sorted(renamed.items())
    ]
    small = helper.make_graph(
        nodes,
        "float islands",
        ports,
        [_port(plan, name, name) for name in outputs],
        [initializer for initializer in graph.proto.graph.initializer if initializer.name in needed],
    )
    model = helper.make_model(
        small, opset_imports=list(graph.proto.opset_import), ir_version=graph.proto.ir_version
    )
    return CutIslands(
        model=model,
        inputs={name: name for name in inputs} | {new: name for name, new in renamed.items()},
        outputs=tuple(outputs),
    )


def _port(plan: ExecutionPlan, tensor: str, name: str) -> onnx.ValueInfoProto:
    port = next((port for port in (*plan.graph.inputs, *plan.graph.outputs) if port.name == tensor), None)
    if port is not None:
        return helper.make_tensor_value_info(name, port.elem_type, None)
    dtype = plan.tensors[tensor].dtype
    assert dtype is not None
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None)
