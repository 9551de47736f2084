"""Rewrites of the captured float graph, each exact in real arithmetic: one visible order, one function a
rewrite.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from mixport.model.programs.fx_graph import (
    arguments,
    aten,
    call,
    clean,
    only_user,
    record_shapes,
    shape_of,
    tensor_arg,
)
from mixport.quantize.graph.pools.adaptive_max_pools import split_adaptive_max_pools
from mixport.quantize.graph.pools.ceil_modes import settle_ceil_modes
from mixport.quantize.graph.pools.pooling import unify_average_pools
from mixport.quantize.graph.recompose import recompose
from mixport.quantize.graph.rewrites.batchnorm import fold_batchnorm
from mixport.quantize.graph.rewrites.constants import fold_constants
from mixport.quantize.graph.rewrites.conv_classifier import linear_classifiers
from mixport.quantize.graph.rewrites.gated_functions import expand_gated_functions
from mixport.quantize.graph.rewrites.identities import drop_identities
from mixport.quantize.graph.rewrites.layerscale import fold_layerscale
from mixport.quantize.graph.rewrites.padding import crop_before_padding, fold_infinite_pads
from mixport.quantize.graph.rewrites.products import expand_attention, flatten_linear
from mixport.quantize.graph.rewrites.score_factors import move_factors_behind_scores
from mixport.quantize.graph.rewrites.transposed_convolutions import split_transposed_convolutions
from mixport.records.decision import Decision

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


def canonicalise(graph: fx.GraphModule) -> list[Decision]:
    """Apply every rewrite in order; returns what was done and why."""
    decisions: list[Decision] = []
    for rewrite in REWRITES:
        new = rewrite(graph)
        decisions.extend(
            [decision for decision in new if decision not in decisions]
        )  # a rewrite that comes twice says it once
        clean(graph)
        if shape_of_input(graph):
            record_shapes(graph, torch.zeros(shape_of_input(graph)))
    return decisions


def shape_of_input(graph: fx.GraphModule) -> tuple[int, ...]:
    """Shape of the graph's image input, as recorded."""
    return next(shape_of(node) for node in graph.graph.nodes if node.op == "placeholder")


def drop_no_ops(graph: fx.GraphModule) -> list[Decision]:
    """Dropout, clone, contiguous and same-type casts do nothing at inference; shape assertions served the
    capture.
    """
    for node in list(graph.graph.nodes):
        if node.op == "call_module":  # guards
            graph.graph.erase_node(node)
        if node.op != "call_function":
            continue
        if node.target is aten.squeeze.default:
            _name_squeezed_axes(node)
        if node.target in _VIEWS:
            node.target = aten.reshape.default  # rewrites change strides, which views may not
        elif node.target in _ASSERTS:
            graph.graph.erase_node(node)
        elif node.target in _NO_OPS or (
            node.target in _CASTS and _is_float(node) and _is_float(node.args[0])
        ):
            node.replace_all_uses_with(tensor_arg(node, 0))
            graph.graph.erase_node(node)
    return []


def _name_squeezed_axes(node: fx.Node) -> None:
    """Squeeze the axes that have one element as recorded: a symbolic batch is no 1, and stays an axis for a
    batch of one image too.
    """
    axes = [axis for axis, size in enumerate(shape_of(tensor_arg(node, 0))) if size == 1]
    node.target, node.args = (
        (aten.squeeze.dims, (node.args[0], axes)) if axes else (aten.alias.default, node.args)
    )


def join_equal_operands(graph: fx.GraphModule) -> list[Decision]:
    """A value that meets itself: one operand, a function of one value."""
    for node in graph.graph.nodes:
        if (
            node.target in _SELF_PAIRS
            and len(node.args) == 2
            and not node.kwargs
            and node.args[0] is node.args[1]
        ):
            node.target, node.args = _SELF_PAIRS[node.target], (node.args[0], 2)
    return []


def same_padding_to_pad(graph: fx.GraphModule) -> list[Decision]:
    """conv2d with padding='same' or 'valid' as explicit zeros."""
    for node in list(graph.graph.nodes):
        if node.target is not aten.conv2d.padding:
            continue
        x, w, bias, stride, padding, dilation, groups = arguments(
            node, None, [1, 1], "valid", [1, 1], 1, after=2
        )
        if padding == "same":
            rows, columns = (int(d) * (k - 1) for d, k in zip(dilation, shape_of(w)[2:], strict=True))
            pads = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
            x = call(graph, aten.constant_pad_nd.default, x, pads, 0.0, before=node, like=node)
        node.replace_all_uses_with(
            call(
                graph,
                aten.conv2d.default,
                x,
                w,
                bias,
                stride,
                [0, 0],
                dilation,
                groups,
                before=node,
                like=node,
            )
        )
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
        joined = (
            source if len(parts) == 1 else call(graph, aten.cat.default, parts, axis, before=node, like=node)
        )
        node.replace_all_uses_with(joined)
        graph.graph.erase_node(node)
    return []


def _is_float(node: Any) -> bool:
    return isinstance(node, fx.Node) and bool(node.meta.get("is_float", False))


def drop_whole_slices(graph: fx.GraphModule) -> list[Decision]:
    """A slice of everything does nothing."""
    for node in list(graph.graph.nodes):
        if node.target is aten.slice.Tensor and only_user(node) is not None and node.args[2:] == (0, _END):
            node.replace_all_uses_with(tensor_arg(node, 0))
            graph.graph.erase_node(node)
    return []


#: Order matters: constants before what looks for them, folds into layers before linear layers are reshaped.
REWRITES = (
    drop_no_ops,
    crop_before_padding,
    drop_whole_slices,
    recompose,
    fold_constants,
    drop_identities,
    expand_gated_functions,
    join_equal_operands,
    fold_infinite_pads,
    settle_ceil_modes,
    same_padding_to_pad,
    scatter_to_concat,
    unify_average_pools,
    split_adaptive_max_pools,
    fold_batchnorm,
    split_transposed_convolutions,
    fold_layerscale,
    linear_classifiers,
    expand_attention,
    move_factors_behind_scores,
    flatten_linear,
    fold_constants,
    drop_identities,
)
