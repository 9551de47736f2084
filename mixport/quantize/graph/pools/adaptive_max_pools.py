"""Adaptive max pools as max pools: ONNX has none, and windows that are alike are those of a max pool."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import fx

from mixport.model.programs.fx_graph import aten, call, module_path, shape_of, tensor_arg
from mixport.quantize.graph.pools.pool_windows import WindowRun, adaptive_windows, runs
from mixport.records.decision import Decision

_POOLS: Mapping[Any, int] = MappingProxyType(
    {aten.adaptive_max_pool1d.default: 1, aten.adaptive_max_pool2d.default: 2}
)
"""Operator, which gives values and their places -> axes of space."""
_MOST_BLOCKS = 64


def split_adaptive_max_pools(graph: fx.GraphModule) -> list[Decision]:
    """One max pool for each block of rows and columns whose windows are alike, joined; one whose places are
    read stays.
    """
    decisions: list[Decision] = []
    for node in list(graph.graph.nodes):
        if node.target not in _POOLS or any(
            user.target is not operator.getitem or user.args[1] != 0 for user in node.users
        ):
            continue
        pooled = _split(graph, node)
        if pooled is None:
            continue
        result, blocks = pooled
        for user in list(node.users):
            user.replace_all_uses_with(result)
            graph.graph.erase_node(user)
        graph.graph.erase_node(node)
        where = module_path(node) or node.name
        decisions.append(
            Decision(
                where=where,
                what=f"adaptive max pool as max pools: {blocks}",
                why="ONNX has no adaptive pools",
            )
        )
    return decisions


def _split(graph: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, int] | None:
    rank, x = _POOLS[node.target], tensor_arg(node, 0)
    shape = shape_of(x)
    if len(shape) != rank + 2:
        return None

    def emit(target: Any, *args: Any) -> fx.Node:
        return call(graph, target, *args, before=node, like=node)

    outputs: Any = node.args[1]
    sizes = [1, *outputs] if rank == 1 else list(outputs)
    if rank == 1:
        x = emit(aten.unsqueeze.default, x, 2)
    height, width = shape_of(x)[2:]
    rows, columns = (
        runs(adaptive_windows(size, int(count))) for size, count in zip((height, width), sizes, strict=True)
    )
    if len(rows) * len(columns) > _MOST_BLOCKS:
        return None

    def block(row: WindowRun, column: WindowRun) -> fx.Node:
        part = x
        for axis, run, size in ((2, row, height), (3, column, width)):
            if (run.start, run.stop) != (0, size):
                part = emit(aten.slice.Tensor, part, axis, run.start, run.stop)
        kernel = [row.windows[0].length, column.windows[0].length]
        return emit(aten.max_pool2d.default, part, kernel, [row.step, column.step], [0, 0], [1, 1], False)

    def joined(parts: list[fx.Node], axis: int) -> fx.Node:
        return parts[0] if len(parts) == 1 else emit(aten.cat.default, parts, axis)

    result = joined([joined([block(row, column) for column in columns], 3) for row in rows], 2)
    return (emit(aten.squeeze.dim, result, 2) if rank == 1 else result), len(rows) * len(columns)
