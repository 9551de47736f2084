"""Which axis of a tensor has the channels: told by the operators that made it, since [N, C, H, W] and [N, H,
W, C] look alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import fx

from mixport.model.programs.fx_graph import aten, shape_of, tensor_arg, tensor_list_arg
from mixport.quantize.graph.roles import Kind

_RESHAPES = {
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
}


def channel_axis(node: fx.Node, kinds: Mapping[fx.Node, Kind]) -> int:
    """Axis of the channels of a tensor, not negative.

    Convolutions and pools give them on axis 1, linear layers, LayerNorms and matrix products on the last one;
    data movement takes the axis along, and what works element by element keeps it. Where the trace is lost
    (channels are split into heads): the last axis of three, axis 1 of any other number.

    Args:
        node: of a graph with recorded shapes.
        kinds: of its nodes.
    """
    rank = len(shape_of(node))
    found = _traced(node, kinds)
    return found if found is not None and found < rank else (2 if rank == 3 else min(1, rank - 1))


def _traced(node: fx.Node, kinds: Mapping[fx.Node, Kind]) -> int | None:
    """The axis, None where it is unknown."""
    moves: list[fx.Node] = []
    while True:
        made = _made_on(node, kinds[node])
        if made is not None:
            break
        source = _source(node, kinds)
        if source is None:
            return None
        moves.append(node)
        node = source
    axis: int | None = made
    for move in reversed(moves):
        axis = _moved(move, axis)
        if axis is None:
            return None
    return axis


def _made_on(node: fx.Node, kind: Kind) -> int | None:
    """Axis on which an operator makes new channels, None where it makes none."""
    last = len(shape_of(node)) - 1
    if (
        kind in {Kind.NORM, Kind.PRODUCT}
        or node.target is aten.linear.default
        or node.target is aten.layer_norm.default
    ):
        return last
    if kind in {Kind.LAYER, Kind.POOL, Kind.INPUT}:
        return 1
    return None


def _source(node: fx.Node, kinds: Mapping[fx.Node, Kind]) -> fx.Node | None:
    """The operand whose axes those of the result are; None where no operand depends on the image."""
    if kinds[node] is Kind.CONCAT:
        return tensor_list_arg(node, 0)[0]
    if kinds[node] is Kind.MOVE:
        return tensor_arg(node, 0)
    dynamic = [source for source in node.all_input_nodes if kinds[source] is not Kind.CONSTANT]
    return next(
        (source for source in dynamic if len(shape_of(source)) == len(shape_of(node))),
        dynamic[0] if dynamic else None,
    )


def _moved(node: fx.Node, axis: int) -> int | None:
    """Where an axis of the operand lies in the result."""
    source = (
        node.all_input_nodes[0]
        if node.target not in {aten.cat.default, aten.concat.default}
        else tensor_list_arg(node, 0)[0]
    )
    before, after = shape_of(source), shape_of(node)
    if node.target is aten.permute.default:
        return _axes(node.args[1], len(before)).index(axis)
    if node.target in {aten.transpose.int, aten.t.default}:
        a, b = _axes(node.args[1:] or (0, 1), len(before))
        return {a: b, b: a}.get(axis, axis)
    if node.target in _RESHAPES and before:
        outer = math.prod(before[:axis])
        same = (
            place
            for place, size in enumerate(after)
            if size == before[axis] and math.prod(after[:place]) == outer
        )
        return next(same, None)
    # The results of a split have no shape together, and one of them has the split's rank.
    return axis if not before or not after or len(before) == len(after) else None


def _axes(values: Any, rank: int) -> list[int]:
    """Axes as an operator names them, not negative."""
    return [int(value) % rank for value in values]
