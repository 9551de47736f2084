"""Which sites quantise a value that a float operator computed in a way that differs between machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import fx

from mixport.quantize.fx_graph import aten
from mixport.quantize.insert import code_params
from mixport.quantize.roles import CODE_MOVES
from mixport.torch_ops import OPS

_CODES = frozenset({OPS.quantize_dequantize.default, OPS.lookup.default, OPS.dequantize_weight.default})

_INTEGER: Mapping[Any, int] = MappingProxyType(
    {
        aten.conv1d.default: 1,
        aten.conv2d.default: 1,
        aten.linear.default: 1,
        aten.matmul.default: 2,
        aten.bmm.default: 2,
        OPS.global_average_pool.default: 1,
        OPS.layer_norm.default: 1,
    }
)
"""Operators that sum integers when their first operands carry codes, and how many operands that are. Their float result is exact."""

_IEEE = frozenset(
    {
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.neg.default,
        aten.abs.default,
        aten.sqrt.default,
        aten.relu.default,
        aten.clamp.default,
        aten.clamp_min.default,
        aten.hardtanh.default,
        aten.cat.default,
        OPS.softmax.default,
    }
)
"""Correctly rounded operations in a fixed order: as exact as their operands."""


@dataclass(frozen=True, kw_only=True)
class Islands:
    """Float islands of a fake-quantised graph.

    Attributes:
        nodes: operators whose float result differs between machines, and exact ones that read such a result.
        sites: names of the sites whose own value, before rounding, comes from one.
    """

    nodes: frozenset[fx.Node]
    sites: frozenset[str]


def find_islands(graph: fx.GraphModule) -> Islands:
    """Float islands, found operator by operator in graph order."""
    islands: set[fx.Node] = set()
    behind: set[str] = set()
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        inherits = any(source in islands for source in node.all_input_nodes)
        if node.target in _CODES:
            if inherits and node.target is OPS.quantize_dequantize.default:
                behind.add(str(node.args[1]))
        elif node.target in _INTEGER:
            operands = [source for source in node.args[: _INTEGER[node.target]] if isinstance(source, fx.Node)]
            if not all(code_params(source) is not None for source in operands):
                islands.add(node)
        elif node.target is aten.div.Tensor and isinstance(node.args[1], fx.Node) and node.args[1].op != "get_attr":
            islands.add(node)  # 0 / 0 is NaN, which runtimes quantise differently
        elif node.target in _IEEE or node.target in CODE_MOVES:
            if inherits:
                islands.add(node)
        elif (node.meta.get("is_float", False) or node.meta.get("is_tuple", False)) and node.all_input_nodes:
            islands.add(node)
    return Islands(nodes=frozenset(islands), sites=frozenset(behind))
