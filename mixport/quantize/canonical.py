"""Rewrites of the captured float graph, each exact in real arithmetic: one visible order, one function a rewrite."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from mixport.artifacts import Decision
from mixport.quantize.batchnorm import fold_batchnorm
from mixport.quantize.fx_graph import add_constant, aten, call, clean, constant, module_path, only_user, record_shapes, shape_of
from mixport.quantize.layerscale import fold_layerscale
from mixport.torch_ops import global_average_pool

GLOBAL_AVERAGE_POOL = torch.ops.mixport.global_average_pool.default

_NO_OPS = {
    aten.dropout.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.feature_dropout.default,
    aten.lift_fresh_copy.default,
}
_VIEWS = {aten.view.default, aten._unsafe_view.default}
_ASSERTS = {aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten._assert_async.msg}


def canonicalise(graph: fx.GraphModule) -> list[Decision]:
    """Apply every rewrite in order; returns what was done and why."""
    assert global_average_pool is not None  # the import registers the operators used below
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
        if node.op != "call_function":
            if node.op == "call_module":  # guards
                graph.graph.erase_node(node)
            continue
        if node.target is aten.pad.default and (node.args[2] if len(node.args) > 2 else "constant") == "constant":
            value = node.args[3] if len(node.args) > 3 else None
            node.target, node.args, node.kwargs = aten.constant_pad_nd.default, (node.args[0], node.args[1], value or 0.0), {}
        if node.target in _VIEWS:
            node.target = aten.reshape.default  # rewrites change strides, which views may not
        elif node.target in _ASSERTS:
            graph.graph.erase_node(node)
        elif node.target in _NO_OPS or (
            node.target in {aten.to.dtype, aten._to_copy.default, aten.type_as.default, aten.to.dtype_layout}
            and _is_float(node)
            and _is_float(node.args[0])
        ):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    return []


def fold_constants(graph: fx.GraphModule) -> list[Decision]:
    """Evaluate calls whose every tensor argument is a constant (position bias tables, reshaped scales)."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not node.all_input_nodes:
            continue
        if any(constant(graph, source) is None for source in node.all_input_nodes) or node.target in {aten.native_dropout.default}:
            continue
        values: dict[fx.Node, Tensor] = {source: c for source in node.all_input_nodes if (c := constant(graph, source)) is not None}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
        result = node.target(*args, **kwargs)
        if not isinstance(result, Tensor) or result.numel() > 1 << 26:
            continue
        node.replace_all_uses_with(add_constant(graph, result.contiguous(), name=node.name, before=node))
        graph.graph.erase_node(node)
    return []


def expand_attention(graph: fx.GraphModule) -> list[Decision]:
    """scaled_dot_product_attention as its two products, so that each operand can be quantised."""
    for node in list(graph.graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default:
            continue
        q, k, v = node.args[:3]
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        scale = node.kwargs.get("scale") or 1.0 / math.sqrt(shape_of(q)[-1])
        if (node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False)) or node.kwargs.get("enable_gqa", False):
            continue

        def emit(target: Any, *args: Any, at: fx.Node = node) -> fx.Node:
            return call(graph, target, *args, before=at, like=at)

        scores = emit(aten.matmul.default, q, emit(aten.transpose.int, k, -2, -1))
        scores = emit(aten.mul.Tensor, scores, float(scale))
        if mask is not None:
            scores = emit(aten.add.Tensor, scores, mask)
        product = emit(aten.matmul.default, emit(aten.softmax.int, scores, -1), v)
        node.replace_all_uses_with(product)
        graph.graph.erase_node(node)
    return []


def same_padding_to_pad(graph: fx.GraphModule) -> list[Decision]:
    """conv2d with padding='same' or 'valid' as explicit zeros."""
    for node in list(graph.graph.nodes):
        if node.target is not aten.conv2d.padding:
            continue
        x, w, bias, stride, padding, dilation, groups = (*node.args, *(None, [1, 1], "valid", [1, 1], 1)[len(node.args) - 2 :])
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, shape_of(w)[2:], strict=True)]
            pads = [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
            x = call(graph, aten.constant_pad_nd.default, x, pads, 0.0, before=node, like=node)
        node.replace_all_uses_with(call(graph, aten.conv2d.default, x, w, bias, stride, [0, 0], dilation, groups, before=node, like=node))
        graph.graph.erase_node(node)
    return []


def scatter_to_concat(graph: fx.GraphModule) -> list[Decision]:
    """x[:, a:b] = y (slice_scatter, stride 1) as a concat of what lies before, y, and what lies after."""
    for node in list(graph.graph.nodes):
        if node.target is not aten.slice_scatter.default:
            continue
        x, source, axis, start, end, step = (*node.args, *(0, None, None, 1)[len(node.args) - 2 :])
        size = shape_of(x)[axis]
        first, last = start or 0, size if end is None else min(int(end), size)
        if step != 1 or not isinstance(first, int) or first < 0:
            continue
        parts = [source]
        if first > 0:
            parts.insert(0, call(graph, aten.slice.Tensor, x, axis, 0, first, before=node, like=node))
        if last < size:
            parts.append(call(graph, aten.slice.Tensor, x, axis, last, size, before=node, like=node))
        joined = source if len(parts) == 1 else call(graph, aten.cat.default, parts, axis, before=node, like=node)
        node.replace_all_uses_with(joined)
        graph.graph.erase_node(node)
    return []


def unify_average_pools(graph: fx.GraphModule) -> list[Decision]:
    """Means over space become GlobalAveragePool; windowed averages without partial windows a depthwise convolution."""
    decisions: list[Decision] = []
    for node in list(graph.graph.nodes):
        if node.target is aten.adaptive_avg_pool2d.default and [int(s) for s in node.args[1]] == [1, 1]:
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
    x = node.args[0]
    rank = len(shape_of(x))
    dims = sorted(d % rank for d in node.args[1])
    keep = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
    channels_first = {(4, (2, 3)): None, (4, (1, 2)): [0, 3, 1, 2], (3, (1,)): [0, 2, 1]}
    if (rank, tuple(dims)) not in channels_first:
        return None
    order = channels_first[rank, tuple(dims)]
    channels = shape_of(x)[1 if order is None else rank - 1]

    def emit(target: Any, *args: Any) -> fx.Node:
        return call(graph, target, *args, before=node, like=node)

    if order is not None:
        x = emit(aten.permute.default, x, order)
    if rank == 3:
        x = emit(aten.unsqueeze.default, x, -1)
    pooled = emit(GLOBAL_AVERAGE_POOL, x)
    shape = {
        True: {(2, 3): [-1, channels, 1, 1], (1, 2): [-1, 1, 1, channels], (1,): [-1, 1, channels]}[tuple(dims)],
        False: [-1, channels],
    }[keep]
    return pooled if keep and order is None else emit(aten.reshape.default, pooled, shape)


def _average_convolution(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    x, kernel, *rest = node.args
    stride, padding, ceil_mode, include_pad, divisor = (*rest, *([], [0, 0], False, True, None)[len(rest) :])
    k_h, k_w = (kernel[0], kernel[-1])
    s_h, s_w = (stride[0], stride[-1]) if stride else (k_h, k_w)
    p_h, p_w = (padding[0], padding[-1])
    _, channels, height, width = shape_of(x)
    partial = ceil_mode and ((height + 2 * p_h - k_h) % s_h or (width + 2 * p_w - k_w) % s_w)
    if partial or ((p_h or p_w) and not include_pad) or divisor is not None:
        return None
    weight = add_constant(graph, torch.full((channels, 1, k_h, k_w), 1.0 / (k_h * k_w)), name=f"{node.name}_average", before=node)
    return call(graph, aten.conv2d.default, x, weight, None, [s_h, s_w], [p_h, p_w], [1, 1], channels, before=node, like=node)


def flatten_linear(graph: fx.GraphModule) -> list[Decision]:
    """Linear layers on [..., C] become reshape, two-dimensional linear, reshape: Gemm takes an int32 bias, MatMul does not.

    Matrix products with a constant right operand become linear layers first.
    """
    for node in list(graph.graph.nodes):
        if node.target in {aten.matmul.default, aten.mm.default} and len(shape_of(node.args[1])) == 2:
            weight = constant(graph, node.args[1])
            if weight is not None:
                source = add_constant(graph, weight.t().contiguous(), name=f"{node.name}_weight", before=node)
                node.target, node.args = aten.linear.default, (node.args[0], source, None)
        if node.target is aten.addmm.default and constant(graph, node.args[2]) is not None and not node.kwargs:
            weight = constant(graph, node.args[2])
            assert weight is not None
            source = add_constant(graph, weight.t().contiguous(), name=f"{node.name}_weight", before=node)
            node.target, node.args = aten.linear.default, (node.args[1], source, node.args[0])
        if node.target is not aten.linear.default or len(shape_of(node.args[0])) == 2:
            continue
        x, weight_node, *bias = node.args
        dims = _symbolic_shape(node)
        if dims is None:
            continue
        flat = call(graph, aten.reshape.default, x, [-1, shape_of(x)[-1]], before=node, like=node)
        linear = call(graph, aten.linear.default, flat, weight_node, *bias, before=node, like=node)
        node.replace_all_uses_with(call(graph, aten.reshape.default, linear, dims, before=node, like=node))
        graph.graph.erase_node(node)
    return []


def _symbolic_shape(node: fx.Node) -> list[int] | None:
    """Shape of the node with -1 for its one symbolic axis; None with several."""
    value = node.meta.get("val")
    sizes = list(value.shape) if value is not None else list(shape_of(node))
    dims = [size if isinstance(size, int) else -1 for size in sizes]
    if value is None:
        dims[0] = -1
    return dims if dims.count(-1) <= 1 else None


def _is_float(node: Any) -> bool:
    return isinstance(node, fx.Node) and bool(node.meta.get("is_float", False))


def drop_identity_pads(graph: fx.GraphModule) -> list[Decision]:
    """A pad by nothing does nothing."""
    for node in list(graph.graph.nodes):
        if (node.target is aten.constant_pad_nd.default and not any(node.args[1])) or (
            node.target is aten.slice.Tensor
            and only_user(node) is not None
            and tuple(node.args[2:4]) == (0, 9223372036854775807)
            and len(node.args) == 4
        ):
            node.replace_all_uses_with(node.args[0])
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
    expand_attention,
    flatten_linear,
    fold_constants,
)
