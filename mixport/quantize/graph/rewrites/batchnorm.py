"""Fold BatchNorm into the convolution or linear layer before it; a BatchNorm that stands alone becomes a
depthwise convolution.

y = gamma * (x - mean) / sqrt(var + eps) + beta = a * x + b with a = gamma / sqrt(var + eps), b = beta - a *
mean, per channel. Folding scales the weights by a, which may be negative: this happens before quantisation,
so signs need no care later.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from mixport.model.programs.fx_graph import (
    add_constant,
    aten,
    call,
    constant,
    module_path,
    only_user,
    shape_of,
)
from mixport.model.programs.fx_graph import arguments as arguments_of
from mixport.quantize.graph.rewrites.transposed_convolutions import TRANSPOSED
from mixport.records.decision import Decision

_FOLDS = frozenset({aten.conv2d.default, aten.conv1d.default, aten.linear.default}) | TRANSPOSED
_NORMS = {
    aten._native_batch_norm_legit_no_training.default,
    aten.batch_norm.default,
    aten.native_batch_norm.default,
}


def fold_batchnorm(graph: fx.GraphModule) -> list[Decision]:
    """Remove every BatchNorm of the graph; returns one decision for each that could not be folded into a
    layer.
    """
    decisions: list[Decision] = []
    for node in list(graph.graph.nodes):
        if node.target not in _NORMS:
            continue
        scale, shift = _affine(graph, node)
        output = (
            node
            if node.target is aten.batch_norm.default
            else next(u for u in node.users if u.target is operator.getitem and u.args[1] == 0)
        )
        source = node.args[0]
        replacement = fold_affine(graph, source, scale, shift)
        if replacement is None:
            replacement = affine_convolution(graph, source, scale, shift, like=node)
            where = module_path(node) or node.name
            decisions.append(
                Decision(
                    where=where,
                    what="BatchNorm as a 1x1 depthwise convolution",
                    why="no layer directly before it could take it",
                )
            )
        output.replace_all_uses_with(replacement)
        if output is not node:
            graph.graph.erase_node(output)
        graph.graph.erase_node(node)
    return decisions


def fold_affine(graph: fx.GraphModule, source: Any, scale: Tensor, shift: Tensor | None) -> fx.Node | None:
    """Fold a * x + b (per output channel) into the convolution or linear layer `source`.

    Returns:
        The layer; None where `source` is no layer, its weights are not constant, or it has other users.
    """
    if not isinstance(source, fx.Node) or source.target not in _FOLDS:
        return None
    weight = constant(graph, source.args[1])
    bias_node = source.args[2] if len(source.args) > 2 else None
    bias = constant(graph, bias_node) if bias_node is not None else None
    if weight is None or only_user(source) is None or (bias_node is not None and bias is None):
        return None
    groups = (
        int(arguments_of(source, None, [1], [0], [0], 1, after=2)[6]) if source.target in TRANSPOSED else 0
    )
    if scale.numel() != (groups * weight.shape[1] if groups else weight.shape[0]):
        return None
    if source.target is aten.linear.default and shift is not None and len(shape_of(source)) != 2:
        return None
    exact = scale.double()
    new_weight = _scaled(weight.double(), exact, groups=groups)
    new_bias = (bias.double() if bias is not None else torch.zeros_like(exact)) * exact + (
        shift.double() if shift is not None else 0.0
    )
    name = module_path(source) or source.name
    arguments = list(source.args) + [None] * (3 - len(source.args))
    arguments[1] = add_constant(graph, new_weight.float(), name=f"{name}_weight", before=source)
    if bias is not None or shift is not None:
        arguments[2] = add_constant(graph, new_bias.float(), name=f"{name}_bias", before=source)
    source.args = tuple(arguments)
    return source


def _scaled(weight: Tensor, scale: Tensor, *, groups: int) -> Tensor:
    """Times one factor for each output channel: axis 0, or axis 1 of each group of a transposed convolution
    (groups > 0).
    """
    kernel = [1] * (weight.dim() - 2)
    if not groups:
        return weight * scale.view(-1, *[1] * (weight.dim() - 1))
    factors = scale.view(groups, 1, -1, *kernel)
    return (weight.view(groups, -1, *weight.shape[1:]) * factors).reshape(weight.shape)


def affine_convolution(
    graph: fx.GraphModule, source: fx.Node, scale: Tensor, shift: Tensor, *, like: fx.Node
) -> fx.Node:
    """a * x + b on [N, C, H, W] as a depthwise 1x1 convolution; on other ranks as multiply and add."""
    rank = len(shape_of(source))
    if rank == 4:
        weight = add_constant(graph, scale.float().view(-1, 1, 1, 1), name=f"{like.name}_weight", before=like)
        bias = add_constant(graph, shift.float(), name=f"{like.name}_bias", before=like)
        return call(
            graph,
            aten.conv2d.default,
            source,
            weight,
            bias,
            [1, 1],
            [0, 0],
            [1, 1],
            scale.numel(),
            before=like,
            like=like,
        )
    shape = [1, -1] + [1] * (rank - 2)
    factor = add_constant(graph, scale.float().view(shape), name=f"{like.name}_scale", before=like)
    offset = add_constant(graph, shift.float().view(shape), name=f"{like.name}_shift", before=like)
    product = call(graph, aten.mul.Tensor, source, factor, before=like, like=like)
    return call(graph, aten.add.Tensor, product, offset, before=like, like=like)


def _affine(graph: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor]:
    gamma, beta, mean, var = (constant(graph, a) for a in node.args[1:5])
    eps = (
        node.args[7]
        if node.target in {aten.batch_norm.default, aten.native_batch_norm.default}
        else node.args[6]
    )
    assert mean is not None and var is not None and isinstance(eps, float)
    scale = torch.rsqrt(var.double() + eps)
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() * scale
    return scale, shift + beta.double() if beta is not None else shift
