"""Softmax and LayerNorm as nodes whose result every IEEE-754 machine agrees on: mixport.portable, one ONNX node a step.

The order of nodes is part of the result. Sums are over integers that their float type holds exactly, so the order inside a sum is not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from mixport.errors import InvariantError
from mixport.lower.onnx_graph import UNDOES, constant_of, initializer, mark, node, replace
from mixport.portable import REACH, SQUARINGS, variance_offset


class _Chain:
    """Nodes in the order in which they are made, all named after one operator of the model."""

    def __init__(self, graph: ir.Graph, name: str) -> None:
        self.graph, self.name = graph, name
        self.nodes: list[ir.Node] = []

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add a node and return its output."""
        label = f"{self.name}/{len(self.nodes)}.{op_type}"
        made = node(op_type, list(inputs), output=label, name=label, **attributes)
        self.nodes.append(made)
        return made.outputs[0]

    def scalar(self, value: float, dtype: Any = np.float32) -> ir.Value:
        """A constant that the whole file shares."""
        array = np.asarray(value, dtype)
        return initializer(self.graph, f"{array.dtype}/{array.item()!r}", array)

    def over_last(self, op_type: str, x: ir.Value) -> ir.Value:
        """ReduceMax (18) or ReduceSum (13) over the last axis, kept as size 1."""
        return self(op_type, x, initializer(self.graph, "axes/-1", np.asarray([-1], np.int64)), keepdims=1)

    def insert(self, old: ir.Node, result: ir.Value) -> None:
        """Put the nodes in place of `old`."""
        self.graph.insert_before(old, self.nodes)
        replace(old.outputs[0], result)


def expand_softmax(graph: ir.Graph, old: ir.Node) -> None:
    """mixport::Softmax; see mixport.portable.softmax."""
    bits = old.attributes["bits"].as_int()
    x = old.inputs[0]
    assert x is not None
    step = _Chain(graph, old.name or old.outputs[0].name or "softmax")
    below = step("Sub", step.over_last("ReduceMax", x), x)
    t = step("Mul", step("Min", below, step.scalar(REACH)), step.scalar(2.0**-SQUARINGS))
    power = step("Sub", step("Mul", t, step.scalar(0.5)), step.scalar(1.0))
    power = step("Add", step("Mul", power, t), step.scalar(1.0))
    for _ in range(SQUARINGS):
        power = step("Mul", power, power)
    codes = step("QuantizeLinear", power, step.scalar(2.0**-bits), step.scalar(0, np.uint16))
    numerators = step("Cast", codes, to=int(ir.DataType.FLOAT))
    step.insert(old, step("Div", numerators, step.over_last("ReduceSum", numerators)))


def expand_layer_norm(graph: ir.Graph, old: ir.Node) -> None:
    """mixport::LayerNorm; see mixport.portable.layer_norm. Its input is turned back into the codes it was dequantised from."""
    attributes = old.attributes
    scale, storage = attributes["scale"].as_float(), attributes["storage"].as_string()
    x, weight, bias = old.inputs
    assert x is not None
    gamma, beta = constant_of(weight), constant_of(bias)
    if gamma is None or beta is None:
        raise InvariantError(f"weight or bias of {old.name} is not constant")
    length, name = len(gamma), attributes["name"].as_string()
    step = _Chain(graph, name)
    in_scale = initializer(graph, f"{name}/in_scale/{old.outputs[0].name}", np.asarray(scale, np.float32))
    back = node(
        "QuantizeLinear",
        [x, in_scale, step.scalar(attributes["zero_point"].as_int(), np.dtype(storage))],
        output=f"{name}/in",
        name=f"{name}/QuantizeLinear",
    )
    mark(back.outputs[0], UNDOES, name)
    step.nodes.append(back)
    codes = back.outputs[0]
    wide = step("Cast", codes, to=int(ir.DataType.DOUBLE))
    total, squares = step.over_last("ReduceSum", wide), step.over_last("ReduceSum", step("Mul", wide, wide))
    count = step.scalar(float(length), np.float64)
    spread = step("Sub", step("Mul", squares, count), step("Mul", total, total))
    offset = variance_offset(length, epsilon=float(attributes["epsilon"].as_string()), scale=scale)
    spread = step("Add", spread, step.scalar(offset, np.float64))
    factor = step("Cast", step("Div", count, step("Sqrt", spread)), to=int(ir.DataType.FLOAT))
    mean = step("Cast", step("Div", total, count), to=int(ir.DataType.FLOAT))
    normal = step("Mul", step("Sub", step("Cast", codes, to=int(ir.DataType.FLOAT)), mean), factor)
    scaled = step("Mul", normal, initializer(graph, f"{name}/gamma/{old.outputs[0].name}", gamma.astype(np.float32)))
    step.insert(old, step("Add", scaled, initializer(graph, f"{name}/beta/{old.outputs[0].name}", beta.astype(np.float32))))
