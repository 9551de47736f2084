"""Depthwise convolutions with several outputs a channel, as depthwise convolutions of repeated channels.

ONNX Runtime has kernels for depthwise convolutions with one output a channel. One with two or more is a
grouped convolution to it, which copies patches and multiplies matrices group by group: FastViT's 7x7 with
stride 2, 48 channels to 96, takes 42 ms of 64x64 pixels; with each channel read twice (Gather) 0.65 ms
(onnxruntime 1.32, x64). Weights, outputs and their order stay as they are.
"""

from __future__ import annotations

import torch
from torch import fx

from mixport.model.programs.fx_graph import (
    add_constant,
    arguments,
    aten,
    call,
    constant,
    module_path,
    shape_of,
    tensor_arg,
)
from mixport.records.decision import Decision
from mixport.records.targets import Target

_CONVOLUTIONS = {aten.conv1d.default: 1, aten.conv2d.default: 2}
"""Operator -> axes of space."""


def repeat_channels(graph: fx.GraphModule, target: Target) -> list[Decision]:
    """Rewrite depthwise convolutions with several outputs a channel, where the target has no kernels for
    them; one decision each.

    Args:
        graph: captured float graph, with recorded shapes.
        target: what its kernels take.
    """
    if target.convolutions.depthwise_multiplier or "Gather" not in target.operators.integer:
        return []
    decisions: list[Decision] = []
    for node in list(graph.graph.nodes):
        weight = constant(graph, node.args[1]) if node.target in _CONVOLUTIONS else None
        if (
            weight is None
            or weight.dtype is not torch.float32
            or len(shape_of(tensor_arg(node, 0))) != weight.dim()
        ):
            continue
        rank = _CONVOLUTIONS[node.target]
        x, filters, bias, stride, padding, dilation, groups = arguments(
            node, None, [1] * rank, [0] * rank, [1] * rank, 1, after=2
        )
        outputs, channels = weight.shape[:2]
        if channels != 1 or groups in (1, outputs):
            continue
        repeats = outputs // groups
        places = add_constant(
            graph, torch.arange(groups).repeat_interleave(repeats), name=f"{node.name}_channels", before=node
        )
        source, pads = x, None
        if x.target is aten.constant_pad_nd.default and len(x.args[1]) <= 2 * rank:
            source, *pads = (
                x.args
            )  # a convolution takes the zeros of a pad directly in front of it as its own
        repeated = call(graph, aten.index_select.default, source, 1, places, before=node, like=node)
        if pads:
            repeated = call(graph, aten.constant_pad_nd.default, repeated, *pads, before=node, like=node)
        node.args = (repeated, filters, bias, stride, padding, dilation, outputs)
        decisions.append(
            Decision(
                where=module_path(node) or node.name,
                what=(
                    f"each of {groups} channels read {repeats} times by a depthwise convolution of {outputs}"
                ),
                why="integer kernels give one output a channel",
            )
        )
    return decisions
