"""Matrix products of a decomposed graph: bmm on merged axes as matmul, addmm and mm as linear layers,
attention without its guards.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from mixport.model.programs.fx_graph import (
    add_constant,
    aten,
    call,
    constant,
    only_user,
    shape_of,
    tensor_arg,
)
from mixport.quantize.graph.recompose.patterns import bind
from mixport.quantize.graph.rewrites.products import use_linear

_MASKED = (aten.eq.Scalar, "scores", float("-inf"))
_SEES_NOTHING = (aten.logical_not.default, (aten.any.dim, (aten.logical_not.default, _MASKED), -1, True))
_SAFE_SOFTMAX = (
    aten.where.self,
    _SEES_NOTHING,
    (aten.full_like.default, "probabilities", 0),
    "probabilities",
)
"""Softmax that gives 0 for a row of scores that a mask hides altogether, where softmax itself gives NaN."""

_SCALES = {aten.mul.Scalar, aten.mul.Tensor}


def recompose_products(graph: fx.GraphModule) -> None:
    """Products as a model writes them, in place."""
    for node in list(graph.graph.nodes):
        if node.target is aten.expand.default and shape_of(node) == shape_of(tensor_arg(node, 0)):
            node.replace_all_uses_with(tensor_arg(node, 0))  # an axis of 1 that is kept, or nothing at all
        elif node.target is aten.where.self and (found := bind(node, _SAFE_SOFTMAX)) is not None:
            node.replace_all_uses_with(found["probabilities"])
        elif node.target is aten.bmm.default:
            _as_matmul(graph, node)
    graph.graph.eliminate_dead_code()  # what follows asks who else reads a node
    for node in list(graph.graph.nodes):
        if node.target in {aten.matmul.default, aten.mm.default, aten.addmm.default}:
            _scale_once(graph, node)
            use_linear(graph, node)
    graph.graph.eliminate_dead_code()
    for node in list(graph.graph.nodes):
        _take_bias(graph, node)


def _as_matmul(graph: fx.GraphModule, node: fx.Node) -> None:
    """reshape(bmm(reshape(expand(a)), reshape(expand(b)))) is matmul(a, b), where the reshapes merge and
    split the same leading axes.
    """
    split = only_user(node)
    if split is None or split.target is not aten.reshape.default:
        return
    lead = _sizes(split)[:-2]
    operands = [_before_merge(graph, tensor_arg(node, place), lead) for place in (0, 1)]
    if _sizes(split)[-2:] != _sizes(node)[-2:] or any(operand is None for operand in operands):
        return
    split.target, split.args, split.kwargs = aten.matmul.default, tuple(operands), {}


def _before_merge(graph: fx.GraphModule, merged: fx.Node, lead: tuple[str, ...]) -> fx.Node | None:
    """The operand [*lead, rows, columns], or what expands to it, whose leading axes `merged` makes into
    one.
    """
    repeated = constant(graph, merged)
    if repeated is not None and len(repeated) and bool((repeated == repeated[:1]).all()):
        return add_constant(graph, repeated[0].contiguous(), name=f"{merged.name}_once", before=merged)
    if merged.target is not aten.reshape.default:
        return None
    source = tensor_arg(merged, 0)
    if _sizes(source)[:-2] != lead or _sizes(source)[-2:] != _sizes(merged)[-2:]:
        return None
    if (
        source.target is aten.expand.default
        and _sizes(tensor_arg(source, 0))[-2:] == _sizes(source)[-2:]
        and _is_matrix(source)
    ):
        return tensor_arg(source, 0)
    return source


def _is_matrix(expanded: fx.Node) -> bool:
    """What was expanded has two axes: matmul spreads it over all others."""
    return len(shape_of(tensor_arg(expanded, 0))) == 2


def _sizes(node: fx.Node) -> tuple[str, ...]:
    """Sizes as text, symbols by their names: two axes are the same only where they are for every batch."""
    value = node.meta.get("val")
    return tuple(map(str, value.shape if value is not None else shape_of(node)))


def _scale_once(graph: fx.GraphModule, node: fx.Node) -> None:
    """(q * a) @ (k * b) is (q @ k) * ab: attention scales its scores."""
    if node.target is not aten.matmul.default:
        return
    left, right = (_scaled(node.args[place]) for place in (0, 1))
    if left is None or right is None:
        return
    product = call(graph, aten.matmul.default, left[0], right[0], before=node, like=node)
    if "val" in node.meta:
        product.meta["val"] = node.meta["val"]
    node.target, node.args = aten.mul.Tensor, (product, left[1] * right[1])


def _scaled(node: Any) -> tuple[fx.Node, float] | None:
    if not isinstance(node, fx.Node) or node.target not in _SCALES or only_user(node) is None:
        return None
    x, factor = node.args
    return (x, float(factor)) if isinstance(x, fx.Node) and isinstance(factor, (int, float)) else None


def _take_bias(graph: fx.GraphModule, node: fx.Node) -> None:
    """linear(x, W) + b, as a product on more than two axes is decomposed, in place of the add."""
    if node.target is not aten.add.Tensor or len(node.args) != 2 or node.kwargs:
        return
    layer, bias = node.args
    values = constant(graph, bias)
    if (
        not isinstance(layer, fx.Node)
        or layer.target is not aten.linear.default
        or any(layer.args[2:])
        or values is None
    ):
        return
    if only_user(layer) is node and values.dim() == 1 and values.numel() == shape_of(layer)[-1]:
        node.target, node.args = aten.linear.default, (*layer.args[:2], bias)
