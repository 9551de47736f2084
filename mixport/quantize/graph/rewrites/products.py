"""Matrix products in the forms that run on integers: attention as two products, linear layers on two axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from mixport.model.programs.fx_graph import (
    add_constant,
    argument,
    arguments,
    aten,
    call,
    constant,
    shape_of,
    tensor_arg,
)
from mixport.records.decision import Decision


def expand_attention(graph: fx.GraphModule) -> list[Decision]:
    """scaled_dot_product_attention as its two products, so that each operand can be quantised."""
    for node in list(graph.graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default:
            continue
        q, k, v = (tensor_arg(node, index) for index in range(3))
        mask, causal = argument(node, 3, "attn_mask"), argument(node, 5, "is_causal", False)
        if not shape_of(q) or not shape_of(k) or (causal and mask is not None):
            continue
        given: Any = node.kwargs.get("scale")
        scale = float(given if given is not None else 1.0 / math.sqrt(shape_of(q)[-1]))

        def emit(target: Any, *args: Any, at: fx.Node = node) -> fx.Node:
            return call(graph, target, *args, before=at, like=at)

        if node.kwargs.get("enable_gqa", False):
            k, v = (_for_every_head(operand, heads=shape_of(q)[-3], emit=emit) for operand in (k, v))
        if causal:
            lower = torch.ones(shape_of(q)[-2], shape_of(k)[-2], dtype=torch.bool).tril()
            mask = add_constant(graph, lower, name=f"{node.name}_causal", before=node)
        scores = emit(aten.matmul.default, q, emit(aten.transpose.int, k, -2, -1))
        scores = emit(aten.mul.Tensor, scores, scale)
        if mask is not None:
            scores = _masked(graph, scores, mask, emit)
        product = emit(aten.matmul.default, emit(aten.softmax.int, scores, -1), v)
        node.replace_all_uses_with(product)
        graph.graph.erase_node(node)
    return []


def _for_every_head(x: fx.Node, *, heads: int, emit: Callable[..., fx.Node]) -> fx.Node:
    """Keys or values [N, G, L, D] that several heads share, as [N, heads, L, D]: data movement, codes stay
    codes.
    """
    groups, length, width = shape_of(x)[-3:]
    if groups == heads:
        return x
    repeated = emit(
        aten.expand.default, emit(aten.unsqueeze.default, x, 2), [-1, -1, heads // groups, -1, -1]
    )
    return emit(aten.reshape.default, repeated, [-1, heads, length, width])


def _masked(graph: fx.GraphModule, scores: fx.Node, mask: fx.Node, emit: Callable[..., fx.Node]) -> fx.Node:
    """A float mask is added; a boolean one selects what may be attended to."""
    value = constant(graph, mask)
    is_float = value.is_floating_point() if value is not None else bool(mask.meta.get("is_float", False))
    if is_float:
        return emit(aten.add.Tensor, scores, mask)
    return emit(aten.masked_fill.Scalar, scores, emit(aten.logical_not.default, mask), float("-inf"))


def flatten_linear(graph: fx.GraphModule) -> list[Decision]:
    """Linear layers on [..., C] become reshape, two-dimensional linear, reshape: Gemm takes an int32 bias,
    MatMul does not.

    Matrix products with a constant right operand become linear layers first.
    """
    for node in list(graph.graph.nodes):
        use_linear(graph, node)
        if node.target is not aten.linear.default:
            continue
        x, weight, *bias = arguments(node)
        dims = _symbolic_shape(node)
        if len(shape_of(x)) in {0, 1, 2} or len(shape_of(weight)) != 2 or dims is None:
            continue
        flat = call(graph, aten.reshape.default, x, [-1, shape_of(x)[-1]], before=node, like=node)
        linear = call(graph, aten.linear.default, flat, weight, *bias, before=node, like=node)
        back = call(graph, aten.reshape.default, linear, dims, before=node, like=node)
        # The next linear layer reads this node in the same sweep.
        back.meta.update({key: node.meta[key] for key in ("shape", "is_float", "val") if key in node.meta})
        node.replace_all_uses_with(back)
        graph.graph.erase_node(node)
    return []


def use_linear(graph: fx.GraphModule, node: fx.Node) -> None:
    """Turn a product with a constant right operand, [I, O], into a linear layer in place; leave any other
    node.
    """
    if node.target in {aten.matmul.default, aten.mm.default}:
        x, right = arguments(node)
        bias = None
        if len(shape_of(right)) != 2:
            return
    elif node.target is aten.addmm.default and not node.kwargs:
        bias, x, right = arguments(node)
    else:
        return
    weight = constant(graph, right)
    if weight is None or weight.dim() != 2:
        return
    if bias is not None:
        values = constant(graph, bias)
        if (
            values is None
            or values.numel() not in {1, weight.shape[1]}
            or values.dim() > 2
            or (values.dim() == 2 and values.shape[0] != 1)
        ):
            return
        bias = add_constant(
            graph,
            values.reshape(-1).expand(weight.shape[1]).contiguous(),
            name=f"{node.name}_bias",
            before=node,
        )
    source = add_constant(graph, weight.t().contiguous(), name=f"{node.name}_weight", before=node)
    node.target, node.args = aten.linear.default, (x, source, bias)


def _symbolic_shape(node: fx.Node) -> list[int] | None:
    """Shape of the node with -1 for its one symbolic axis; None with several."""
    value = node.meta.get("val")
    sizes = list(value.shape) if value is not None else list(shape_of(node))
    dims = [size if isinstance(size, int) else -1 for size in sizes]
    if value is None:
        dims[0] = -1
    return dims if dims.count(-1) <= 1 else None
