"""Functions of one value, and shifts along an axis, that decomposition spells out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from mixport.model.programs.fx_graph import aten, constant, operator_of, shape_of
from mixport.quantize.graph.recompose.patterns import Pattern, bind

_SIX = (aten.clamp.default, (aten.clamp.default, (aten.add.Tensor, "x", 3), 0), None, 6)
_SOFTPLUS = (aten.where.self, (aten.gt.Scalar, "x", 20), "x", (aten.log1p.default, (aten.exp.default, "x")))
_ONCE = (aten.mul.Tensor, "x", 1.0)
_SOFTPLUS_SCALED = (
    aten.where.self,
    (aten.gt.Scalar, _ONCE, 20.0),
    "x",
    (aten.div.Tensor, (aten.log1p.default, (aten.exp.default, _ONCE)), 1.0),
)

_FUNCTIONS: tuple[tuple[Pattern, Any], ...] = (
    ((aten.mul.Tensor, "x", (aten.sigmoid.default, "x")), aten.silu.default),
    ((aten.mul.Tensor, (aten.sigmoid.default, "x"), "x"), aten.silu.default),
    (_SOFTPLUS, aten.softplus.default),
    ((aten.mul.Tensor, "x", (aten.tanh.default, (aten.softplus.default, "x"))), aten.mish.default),
    ((aten.div.Tensor, (aten.mul.Tensor, "x", _SIX), 6), aten.hardswish.default),
    ((aten.div.Tensor, _SIX, 6), aten.hardsigmoid.default),
    (_SOFTPLUS_SCALED, aten.softplus.default),
)
"""Pattern of one x -> the function of it; what a pattern reads stands before it in the graph, and is put
together before.
"""


def recompose_functions(graph: fx.GraphModule) -> None:
    """Retarget the last node of each spelled-out function; what only it read is dead then."""
    for node in list(graph.graph.nodes):
        if node.target is aten.index_select.default:
            _as_roll(graph, node)
            continue
        for pattern, function in _FUNCTIONS:
            if (found := bind(node, pattern)) is not None:
                node.target, node.args = function, (found["x"],)
                break


def _as_roll(graph: fx.GraphModule, node: fx.Node) -> None:
    """A selection by the indices k, k + 1, ... n - 1, 0, ... k - 1 is a roll by -k."""
    x, axis, index = node.args
    chosen = _value(graph, index)
    if chosen is None or chosen.dim() != 1 or not isinstance(x, fx.Node) or not isinstance(axis, int):
        return
    size = shape_of(x)[axis]
    first = int(chosen[0]) if chosen.numel() else 0
    if torch.equal(chosen, (torch.arange(size, dtype=chosen.dtype) + first) % size):
        node.target, node.args = aten.roll.default, (x, [-first], [axis])


def _value(graph: fx.GraphModule, node: Any) -> Tensor | None:
    """What a node computes from no activation and no symbol; None for any other."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "get_attr":
        return constant(graph, node)
    if node.op != "call_function":
        return None
    values = {source: _value(graph, source) for source in node.all_input_nodes}
    if any(value is None for value in values.values()):
        return None
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    result = operator_of(node)(*args, **kwargs)
    return result if isinstance(result, Tensor) else None
