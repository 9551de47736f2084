"""Gates of few channels copied to every position before they are multiplied, where a target multiplies equal
shapes faster.

A squeeze-and-excitation block multiplies [N, C, H, W] by [N, C, 1, 1]. With channels last, as ONNX Runtime's
convolutions have them, QLinearMul broadcasts C values at a time: 16 channels of 56x56 take 0.05 ms, with the
gate expanded first 0.02 ms; 32 of 112x112 0.22 and 0.14 ms; 96 of 56x56 0.09 and 0.11 ms (onnxruntime 1.32,
x64).
"""

from __future__ import annotations

import math

from torch import fx

from mixport.model.programs.fx_graph import aten, call, module_path, shape_of
from mixport.records.decision import Decision
from mixport.records.targets import Target

_LEAST_POSITIONS = 784
"""28 x 28: on smaller maps neither form takes a hundredth of a millisecond."""


def spread_gates(graph: fx.GraphModule, target: Target) -> list[Decision]:
    """Expand the factors of few channels; one decision each.

    Args:
        graph: captured float graph, with recorded shapes.
        target: from how many channels on it broadcasts them at full speed.
    """
    least = target.elementwise.broadcast_channels
    if least is None or "Expand" not in target.operators.integer:
        return []
    decisions: list[Decision] = []
    for node in list(graph.graph.nodes):
        if node.target is not aten.mul.Tensor or not all(
            _is_activation(operand) for operand in node.args[:2]
        ):
            continue
        gate, x = sorted(node.args[:2], key=lambda operand: math.prod(shape_of(operand)))
        (batch, channels, *positions), (*_, rows, columns) = shape_of(gate), shape_of(x)
        alike = shape_of(x)[:2] == (batch, channels) and positions == [1, 1]
        if not alike or channels >= least or rows * columns < _LEAST_POSITIONS:
            continue
        spread = call(graph, aten.expand.default, gate, [-1, channels, rows, columns], before=node, like=node)
        node.args = tuple(spread if operand is gate else operand for operand in node.args)
        decisions.append(
            Decision(
                where=module_path(node) or node.name,
                what=f"gate of {channels} channels copied to {rows} x {columns} positions",
                why=f"below {least} channels equal shapes are multiplied faster",
            )
        )
    return decisions


def _is_activation(operand: object) -> bool:
    """A float map [N, C, H, W] that depends on the image."""
    return (
        isinstance(operand, fx.Node)
        and operand.op != "get_attr"
        and len(shape_of(operand)) == 4
        and bool(operand.meta.get("is_float"))
    )
