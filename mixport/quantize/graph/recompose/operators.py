"""Operators of core ATen that are another name for one of the operators that quantisation knows."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

from torch import Tensor, fx

from mixport.model.programs.fx_graph import arguments, aten, shape_of, tensor_arg

_Args = tuple[Any, ...]

_CONVOLUTIONS: Mapping[tuple[int, bool], Any] = MappingProxyType(
    {
        (3, False): aten.conv1d.default,
        (4, False): aten.conv2d.default,
        (5, False): aten.conv3d.default,
        (3, True): aten.conv_transpose1d.default,
        (4, True): aten.conv_transpose2d.input,
        (5, True): aten.conv_transpose3d.input,
    }
)
"""(rank of the weight, transposed) -> operator."""

_RENAMED: Mapping[Any, tuple[Any, Callable[[_Args], _Args]]] = MappingProxyType(
    {
        aten._softmax.default: (aten.softmax.int, lambda args: args[:2]),
        aten._log_softmax.default: (aten.log_softmax.int, lambda args: args[:2]),
        aten._adaptive_avg_pool2d.default: (aten.adaptive_avg_pool2d.default, lambda args: args),
    }
)
_FIRST_RESULT: Mapping[Any, tuple[Any, Callable[[_Args], _Args]]] = MappingProxyType(
    {
        aten.max_pool2d_with_indices.default: (aten.max_pool2d.default, lambda args: args),
        aten.native_layer_norm.default: (aten.layer_norm.default, lambda args: args),
        # (x, weight, bias, N, C, H * W, groups, eps)
        aten.native_group_norm.default: (
            aten.group_norm.default,
            lambda args: (args[0], args[6], args[1], args[2], args[7]),
        ),
    }
)
"""Operators with several results -> the one that gives the first of them alone, and its arguments."""


def rename_operators(graph: fx.GraphModule) -> None:
    """Call the operators that a model as written calls; results that training alone needs must be unused."""
    for node in list(graph.graph.nodes):
        if node.target is aten.convolution.default:
            _name_convolution(node)
        elif node.target in _RENAMED:
            node.target, arrange = _RENAMED[node.target]
            node.args, node.kwargs = arrange(node.args), {}
        elif node.target in _FIRST_RESULT:
            _take_first(node)
        elif node.target is aten.as_strided.default and _keeps_places(node):
            node.replace_all_uses_with(tensor_arg(node, 0))


def _name_convolution(node: fx.Node) -> None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = arguments(node)
    target = _CONVOLUTIONS.get((len(shape_of(weight)), bool(transposed)))
    if target is None:
        return
    node.target = target
    node.args = (
        x,
        weight,
        bias,
        stride,
        padding,
        *((output_padding, groups, dilation) if transposed else (dilation, groups)),
    )


def _keeps_places(node: fx.Node) -> bool:
    """as_strided that gives other strides to axes of one element alone (a global mean in channels-last
    order).
    """
    source, shape = tensor_arg(node, 0), shape_of(node)
    value = source.meta.get("val")
    # Strides count places in memory: those of a transposed tensor are others than those of its shape.
    if isinstance(value, Tensor) and not value.is_contiguous():
        return False
    if len(node.args) != 3 or shape != shape_of(source):
        return False
    strides = cast("list[int]", node.args[2])
    dense = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return all(
        size == 1 or stride == wanted for size, stride, wanted in zip(shape, strides, dense, strict=True)
    )


def _take_first(node: fx.Node) -> None:
    results = list(node.users)
    if any(result.target is not operator.getitem or result.args[1] != 0 for result in results):
        return
    target, arrange = _FIRST_RESULT[node.target]
    for result in results:
        result.target, result.args = target, arrange(node.args)
