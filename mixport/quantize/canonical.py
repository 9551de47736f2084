"""Rewrites of the captured float graph, each exact in real arithmetic: one visible order, one function a rewrite."""

from __future__ import annotations

import operator
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from mixport.artifacts import Decision
from mixport.quantize.batchnorm import fold_batchnorm
from mixport.quantize.conv_classifier import linear_classifiers
from mixport.quantize.fx_graph import (
    add_constant,
    arguments,
    aten,
    call,
    clean,
    constant,
    only_user,
    operator_of,
    record_shapes,
    shape_of,
    tensor_arg,
)
from mixport.quantize.layerscale import fold_layerscale
from mixport.quantize.pooling import unify_average_pools
from mixport.quantize.products import expand_attention, flatten_linear

_NO_OPS = {
    aten.dropout.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.feature_dropout.default,
    aten.lift_fresh_copy.default,
}
_CASTS = {aten.to.dtype, aten._to_copy.default, aten.type_as.default, aten.to.dtype_layout}
_VIEWS = {aten.view.default, aten._unsafe_view.default}
_SELF_PAIRS = MappingProxyType({aten.mul.Tensor: aten.pow.Tensor_Scalar, aten.add.Tensor: aten.mul.Tensor})
"""x * x is x ** 2, and x + x is x * 2."""
_ASSERTS = {aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten._assert_async.msg}

_END = (1 << 63) - 1
"""How ATen writes an open end of a slice."""

_LARGEST_FOLDED = 1 << 26
"""Elements; a larger constant stays a computation."""


def canonicalise(graph: fx.GraphModule) -> list[Decision]:
    """Apply every rewrite in order; returns what was done and why."""
    decisions: list[Decision] = []
    for rewrite in REWRITES:
        decisions.extend(rewrite(graph))
        clean(graph)
        if shape_of_input(graph):
            record_shapes(graph, torch.zeros(shape_of_input(graph)))
    return decisions


def shape_of_input(graph: fx.GraphModule) -> tuple[int, ...]:
    """Shape of the graph's image input, as recorded."""
    return next(shape_of(node) for node in graph.graph.nodes if node.op == "placeholder")


def drop_no_ops(graph: fx.GraphModule) -> list[Decision]:
    """Dropout, clone, contiguous and same-type casts do nothing at inference; shape assertions served the capture."""
    for node in list(graph.graph.nodes):
        if node.op == "call_module":  # guards
            graph.graph.erase_node(node)
        if node.op != "call_function":
            continue
        if node.target is aten.pad.default:
            _use_constant_pad(node)
        if node.target in _VIEWS:
            node.target = aten.reshape.default  # rewrites change strides, which views may not
        elif node.target in _SELF_PAIRS and len(node.args) == 2 and not node.kwargs and node.args[0] is node.args[1]:
            node.target, node.args = _SELF_PAIRS[node.target], (node.args[0], 2)  # one operand, a function of one value
        elif node.target in _ASSERTS:
            graph.graph.erase_node(node)
        elif node.target in _NO_OPS or (node.target in _CASTS and _is_float(node) and _is_float(node.args[0])):
            node.replace_all_uses_with(tensor_arg(node, 0))
            graph.graph.erase_node(node)
    return []


def _use_constant_pad(node: fx.Node) -> None:
    x, pads, mode, value = arguments(node, "constant", None, after=2)
    if mode == "constant":
        node.target, node.args, node.kwargs = aten.constant_pad_nd.default, (x, pads, value or 0.0), {}


def fold_constants(graph: fx.GraphModule) -> list[Decision]:
    """Evaluate calls whose every tensor argument is a constant (position bias tables, reshaped scales)."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target is aten.native_dropout.default:
            continue
        result = _evaluate(graph, node)
        if result is None or result.numel() > _LARGEST_FOLDED:
            continue
        node.replace_all_uses_with(add_constant(graph, result.contiguous(), name=node.name, before=node))
        graph.graph.erase_node(node)
    return []


def _evaluate(graph: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """Value of a call that reads only constants, a part of a split constant too; None for any other, and where it is no tensor."""
    result = _value(graph, node)
    if result is None and node.target is operator.getitem:
        parts = _value(graph, tensor_arg(node, 0))
        result = None if parts is None else parts[node.args[1]]
    return result if isinstance(result, Tensor) else None


def _value(graph: fx.GraphModule, node: fx.Node) -> Any:
    values: dict[fx.Node, Tensor] = {}
    for source in node.all_input_nodes:
        value = constant(graph, source)
        if value is None:
            return None
        values[source] = value
    if not values or node.op != "call_function":
        return None
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    return operator_of(node)(*args, **kwargs)


def same_padding_to_pad(graph: fx.GraphModule) -> list[Decision]:
    """conv2d with padding='same' or 'valid' as explicit zeros."""
    for node in list(graph.graph.nodes):
        if node.target is not aten.conv2d.padding:
            continue
        x, w, bias, stride, padding, dilation, groups = arguments(node, None, [1, 1], "valid", [1, 1], 1, after=2)
        if padding == "same":
            rows, columns = (int(d) * (k - 1) for d, k in zip(dilation, shape_of(w)[2:], strict=True))
            pads = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
            x = call(graph, aten.constant_pad_nd.default, x, pads, 0.0, before=node, like=node)
        node.replace_all_uses_with(call(graph, aten.conv2d.default, x, w, bias, stride, [0, 0], dilation, groups, before=node, like=node))
        graph.graph.erase_node(node)
    return []


def scatter_to_concat(graph: fx.GraphModule) -> list[Decision]:
    """x[:, a:b] = y (slice_scatter, stride 1) as a concat of what lies before, y, and what lies after."""
    for node in list(graph.graph.nodes):
        if node.target is not aten.slice_scatter.default:
            continue
        x, source, axis, start, end, step = arguments(node, 0, None, None, 1, after=2)
        shape = shape_of(x)
        if not shape or step != 1 or not isinstance(start or 0, int) or not isinstance(end or 0, int):
            continue
        size = shape[int(axis)]
        first, last = slice(start, end).indices(size)[:2]
        if last <= first:
            continue
        parts: list[fx.Node] = [source]
        if first > 0:
            parts.insert(0, call(graph, aten.slice.Tensor, x, axis, 0, first, before=node, like=node))
        if last < size:
            parts.append(call(graph, aten.slice.Tensor, x, axis, last, size, before=node, like=node))
        joined = source if len(parts) == 1 else call(graph, aten.cat.default, parts, axis, before=node, like=node)
        node.replace_all_uses_with(joined)
        graph.graph.erase_node(node)
    return []


def _is_float(node: Any) -> bool:
    return isinstance(node, fx.Node) and bool(node.meta.get("is_float", False))


def drop_identity_pads(graph: fx.GraphModule) -> list[Decision]:
    """A pad by nothing and a slice of everything do nothing."""
    for node in list(graph.graph.nodes):
        empty_pad = node.target is aten.constant_pad_nd.default and not any(arguments(node)[1])
        whole_slice = node.target is aten.slice.Tensor and only_user(node) is not None and node.args[2:] == (0, _END)
        if empty_pad or whole_slice:
            node.replace_all_uses_with(tensor_arg(node, 0))
            graph.graph.erase_node(node)
    return []


#: Order matters: constants before the folds that look for them, folds before linear layers are reshaped.
REWRITES = (
    drop_no_ops,
    drop_identity_pads,
    fold_constants,
    same_padding_to_pad,
    scatter_to_concat,
    unify_average_pools,
    fold_batchnorm,
    fold_layerscale,
    linear_classifiers,
    expand_attention,
    flatten_linear,
    fold_constants,
)
