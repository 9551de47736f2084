"""Nodes that stand for one operator of the model, made one after the other and named after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from mixport.lower.onnx_graph import initializer, node, replace


class NodeChain:
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

    def integers(self, *values: int) -> ir.Value:
        """Axes or sizes, int64 [len(values)], that the whole file shares."""
        return initializer(self.graph, f"int64/{','.join(map(str, values))}", np.asarray(values, np.int64))

    def over_last(self, op_type: str, x: ir.Value, *, keepdims: int = 1) -> ir.Value:
        """ReduceMax (18) or ReduceSum (13) over the last axis, kept as size 1 unless `keepdims` is 0."""
        return self(
            op_type, x, initializer(self.graph, "axes/-1", np.asarray([-1], np.int64)), keepdims=keepdims
        )

    def insert(self, old: ir.Node, result: ir.Value) -> None:
        """Put the nodes in place of `old`."""
        self.graph.insert_before(old, self.nodes)
        replace(old.outputs[0], result)
