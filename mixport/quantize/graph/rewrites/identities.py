"""Operators that change no value: times 1, plus 0, a concat of one tensor, a mask that hides nothing.

They go before quantisers are placed. A runtime removes them too, and would then merge the quantisers on both
sides into one pair with a third scale (ONNX Runtime 1.32: NoopElimination, then DoubleQDQPairsRemover), so
that other codes come out.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from mixport.model.programs.fx_graph import argument, aten, constant, module_path, shape_of, tensor_list_arg
from mixport.quantize.graph.marks import short_op
from mixport.records.decision import Decision

_NEUTRAL: Mapping[Any, tuple[float, bool]] = MappingProxyType(
    {
        aten.mul.Tensor: (1.0, True),
        aten.mul.Scalar: (1.0, True),
        aten.add.Tensor: (0.0, True),
        aten.add.Scalar: (0.0, True),
        aten.sub.Tensor: (0.0, False),
        aten.sub.Scalar: (0.0, False),
        aten.div.Tensor: (1.0, False),
        aten.div.Scalar: (1.0, False),
        aten.pow.Tensor_Scalar: (1.0, False),
        aten.pow.Tensor_Tensor: (1.0, False),
    }
)
"""Operator -> the operand that changes nothing, and whether it may stand on either side."""

_CONCATS = frozenset({aten.cat.default, aten.concat.default, aten.concatenate.default})


def drop_identities(graph: fx.GraphModule) -> list[Decision]:
    """Readers of an identity read its operand; one decision each. Where broadcasting gives another shape or
    type, nothing is one.
    """
    decisions: list[Decision] = []
    for node in list(graph.graph.nodes):
        source = _operand_given_back(graph, node)
        if source is None or not _is_like(source, node):
            continue
        where = module_path(node) or node.name
        decisions.append(
            Decision(
                where=where,
                what=f"{short_op(node)} left out",
                why="it gives back its operand: times 1, plus 0, or the like",
            )
        )
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
    return decisions


def _operand_given_back(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The operand whose values the node gives, broadcasting aside."""
    if node.op != "call_function" or not node.meta.get("is_float", False):
        return None
    if node.target in _NEUTRAL:
        return _beside_neutral(graph, node)
    if node.target in _CONCATS:
        parts = tensor_list_arg(node, 0)
        return parts[0] if len(parts) == 1 else None
    if node.target in {aten.masked_fill.Scalar, aten.masked_fill.Tensor}:
        return _node(node.args[0]) if _is_all(constant(graph, node.args[1]), value=0.0) else None
    if node.target is aten.where.self:
        mask = constant(graph, node.args[0])
        return next(
            (_node(node.args[place]) for place, value in ((1, 1.0), (2, 0.0)) if _is_all(mask, value=value)),
            None,
        )
    return None


def _beside_neutral(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    neutral, either_side = _NEUTRAL[node.target]
    rounding, alpha = node.kwargs.get("rounding_mode"), argument(node, 2, "alpha", 1)
    if rounding is not None:
        return None
    operands = node.args[0], argument(node, 1, "other", argument(node, 1, "exponent"))
    if _is_neutral(graph, operands[1], neutral):
        return _node(operands[0])
    return (
        _node(operands[1])
        if either_side and alpha == 1 and _is_neutral(graph, operands[0], neutral)
        else None
    )


def _is_neutral(graph: fx.GraphModule, operand: Any, neutral: float) -> bool:
    if isinstance(operand, (int, float)):
        return float(operand) == neutral
    return _is_all(constant(graph, operand), value=neutral)


def _is_all(tensor: Tensor | None, *, value: float) -> bool:
    return tensor is not None and tensor.numel() > 0 and bool(torch.all(tensor == value))


def _node(value: Any) -> fx.Node | None:
    return value if isinstance(value, fx.Node) else None


def _is_like(source: fx.Node, node: fx.Node) -> bool:
    """Same shape, both float32."""
    return bool(source.meta.get("is_float", False)) and shape_of(source) == shape_of(node)
