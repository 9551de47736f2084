"""Average pools and means over space in forms that run on integers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import fx

from mixport.model.programs.fx_graph import argument, arguments, aten, call, module_path, shape_of, tensor_arg
from mixport.quantize.graph.pools.pool_forms import AVERAGE_POOLS, GLOBAL_AVERAGE_POOL, average_pool
from mixport.records.decision import Decision

_WHY = "integer weights of 1: exact on every runtime"
_WHY_FLOAT = "no batch axis, three axes of space, or windows too irregular"
_CHANNELS_FIRST: Mapping[tuple[int, tuple[int, ...]], list[int] | None] = MappingProxyType(
    {(4, (2, 3)): None, (4, (1, 2)): [0, 3, 1, 2], (3, (1,)): [0, 2, 1]}
)
"""(rank, axes of a mean over space) -> permutation that puts channels first; None where they are."""


def unify_average_pools(graph: fx.GraphModule) -> list[Decision]:
    """Means over space become GlobalAveragePool; averages of windows become depthwise convolutions
    (`pool_forms`).
    """
    decisions: list[Decision] = []
    for node in list(graph.graph.nodes):
        if node.target is aten.mean.dim:
            pooled = _global_mean(graph, node)
        elif node.target in AVERAGE_POOLS:
            form = average_pool(graph, node)
            what = "average pool left in float" if form is None else f"average pool as {form.what}"
            decisions.append(
                Decision(
                    where=module_path(node) or node.name, what=what, why=_WHY_FLOAT if form is None else _WHY
                )
            )
            pooled = None if form is None else form.result
        else:
            continue
        if pooled is not None:
            node.replace_all_uses_with(pooled)
            graph.graph.erase_node(node)
    return decisions


def _global_mean(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    x, dims = tensor_arg(node, 0), arguments(node)[1]
    shape = shape_of(x)
    rank = len(shape)
    if not rank or not dims:
        return None
    axes = tuple(sorted(int(dim) % rank for dim in dims))
    if (rank, axes) not in _CHANNELS_FIRST:
        return None
    order = _CHANNELS_FIRST[rank, axes]
    channels = shape[1 if order is None else rank - 1]

    def emit(target: Any, *args: Any) -> fx.Node:
        return call(graph, target, *args, before=node, like=node)

    if order is not None:
        x = emit(aten.permute.default, x, order)
    if rank == 3:
        x = emit(aten.unsqueeze.default, x, -1)
    pooled = emit(GLOBAL_AVERAGE_POOL, x)
    keep_axes = bool(argument(node, 2, "keepdim", False))
    if keep_axes and order is None:
        return pooled
    result = [1 if axis in axes else channels for axis in range(1, rank)] if keep_axes else [channels]
    return emit(aten.reshape.default, pooled, [-1, *result])
