"""Average pools in the two forms that run on integers: the global mean, and a depthwise convolution for windows."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from mixport.artifacts import Decision
from mixport.errors import UnsupportedModelError
from mixport.quantize.fx_graph import add_constant, argument, arguments, aten, call, module_path, shape_of, tensor_arg
from mixport.torch_ops import OPS

GLOBAL_AVERAGE_POOL = OPS.global_average_pool.default

_CHANNELS_FIRST: Mapping[tuple[int, tuple[int, ...]], list[int] | None] = MappingProxyType(
    {(4, (2, 3)): None, (4, (1, 2)): [0, 3, 1, 2], (3, (1,)): [0, 2, 1]}
)
"""(rank, axes of a mean over space) -> permutation that puts channels first; None where they are."""


_POOLS = frozenset({aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default})
_RANK = 4
"""Pools without a batch axis stay in float."""


def unify_average_pools(graph: fx.GraphModule) -> list[Decision]:
    """Means over space become GlobalAveragePool; windowed averages without partial windows a depthwise convolution."""
    decisions: list[Decision] = []
    for node in list(graph.graph.nodes):
        if node.target in _POOLS and len(shape_of(tensor_arg(node, 0))) != _RANK:
            continue
        if node.target is aten.adaptive_avg_pool2d.default and [int(side) for side in arguments(node)[1]] == [1, 1]:
            pooled = call(graph, GLOBAL_AVERAGE_POOL, node.args[0], before=node, like=node)
        elif node.target is aten.mean.dim:
            pooled = _global_mean(graph, node)
        elif node.target is aten.avg_pool2d.default:
            pooled = _average_convolution(graph, node)
            what = "average pool as depthwise convolution" if pooled is not None else "average pool left in float"
            why = "integer weights of 1: exact on every runtime" if pooled is not None else "windows at the border hold fewer pixels"
            decisions.append(Decision(where=module_path(node) or node.name, what=what, why=why))
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


def _average_convolution(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    x, kernel, stride, padding, ceil_mode, include_pad, divisor = arguments(node, [], [0, 0], False, True, None, after=2)
    k_h, k_w = _pair(kernel)
    s_h, s_w = _pair(stride) if stride else (k_h, k_w)
    p_h, p_w = _pair(padding)
    _, channels, height, width = shape_of(x)
    if divisor is not None and ceil_mode:
        where = module_path(node) or node.name
        raise UnsupportedModelError(
            f"{where}: aten.avg_pool2d with ceil_mode and divisor_override has no ONNX form", hint="drop one of the two"
        )
    partial = ceil_mode and ((height + 2 * p_h - k_h) % s_h or (width + 2 * p_w - k_w) % s_w)
    padding_left_out = (p_h or p_w) and not include_pad and divisor is None
    if partial or padding_left_out:
        return None
    weight = add_constant(
        graph, torch.full((channels, 1, k_h, k_w), 1.0 / (divisor or k_h * k_w)), name=f"{node.name}_average", before=node
    )
    return call(graph, aten.conv2d.default, x, weight, None, [s_h, s_w], [p_h, p_w], [1, 1], channels, before=node, like=node)


def _pair(sizes: list[int]) -> tuple[int, int]:
    """(rows, columns) of a list that holds one number for both, or two."""
    return sizes[0], sizes[-1]
