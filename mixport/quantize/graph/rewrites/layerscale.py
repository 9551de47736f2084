"""Fold a per-channel factor (LayerScale, learned residual gains) into the layer before it.

x * gamma with constant gamma along the channel axis commutes with transposes, so the layer may lie behind a
permute.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from mixport.model.programs.fx_graph import (
    arguments,
    aten,
    constant,
    module_path,
    only_user,
    shape_of,
    tensor_arg,
)
from mixport.quantize.graph.rewrites.batchnorm import affine_convolution, fold_affine
from mixport.records.decision import Decision


def fold_layerscale(graph: fx.GraphModule) -> list[Decision]:
    """Remove constant per-channel factors where a layer can take them, or turn them into depthwise
    convolutions on [N, C, H, W].
    """
    decisions: list[Decision] = []
    for node in list(graph.graph.nodes):
        operands = [operand for operand in node.args[:2] if isinstance(operand, fx.Node)]
        if node.target is not aten.mul.Tensor or len(operands) != 2:
            continue
        for source, factor_node in (operands, operands[::-1]):
            factor = constant(graph, factor_node)
            if factor is None or constant(graph, source) is not None:
                continue
            axis = _channel_axis(factor, shape_of(source))
            if axis is None:
                continue
            gain = factor.reshape(-1)
            if gain.numel() == 1:
                gain = gain.expand(shape_of(source)[axis])
            replaced = _fold(graph, source, gain, axis)
            if not replaced and axis == 1 and len(shape_of(source)) == 4:
                node.replace_all_uses_with(
                    affine_convolution(graph, source, gain, torch.zeros_like(gain), like=node)
                )
                decisions.append(
                    Decision(
                        where=module_path(node) or node.name,
                        what="factor as a 1x1 depthwise convolution",
                        why="no layer directly before it could take it",
                    )
                )
            elif replaced:
                node.replace_all_uses_with(source)
            else:
                continue
            graph.graph.erase_node(node)
            break
    return decisions


def _channel_axis(factor: Tensor, shape: tuple[int, ...]) -> int | None:
    """The one axis of x along which the factor varies; None when there are several, or x has another shape
    after broadcasting.
    """
    if factor.dim() > len(shape) or factor.numel() == 1:
        return None
    padded = (1,) * (len(shape) - factor.dim()) + tuple(factor.shape)
    varying = [i for i, size in enumerate(padded) if size != 1]
    if len(varying) != 1 or padded[varying[0]] != shape[varying[0]]:
        return None
    return varying[0]


def _fold(graph: fx.GraphModule, source: fx.Node, gain: Tensor, axis: int) -> bool:
    while source.target is aten.permute.default and only_user(source) is not None:
        order: list[int] = arguments(source)[1]
        axis = int(order[axis]) % len(shape_of(source))
        source = tensor_arg(source, 0)
    if source.target is aten.linear.default:
        return axis == len(shape_of(source)) - 1 and fold_affine(graph, source, gain, None) is not None
    return axis == 1 and fold_affine(graph, source, gain, None) is not None
