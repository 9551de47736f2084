"""Transposed convolutions as convolutions: one for each phase of the stride, side by side in the channels,
then interleaved.

y[s m + r] = sum over t of x[m - t] w[s t + r]: outputs at the same place r between two inputs are a
convolution of x with every s-th weight (W. Shi et al., "Is the deconvolution layer the same as a
convolutional layer?", arXiv 1609.07009). Exact in real arithmetic, and the same number of products but for
kernels that the stride does not divide.

Left as it is, ONNX Runtime 1.32 would round the float weights of a ConvTranspose between codes to 8 bits
itself, from optimisation level basic on (`findings/onnxruntime-rounds-float-weights.sh`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mixport.model.programs.fx_graph import (
    add_constant,
    arguments,
    aten,
    call,
    constant,
    each_axis,
    module_path,
    shape_of,
    tensor_arg,
)
from mixport.records.decision import Decision

TRANSPOSED = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input})
"""Arguments: x, weight [C, O / groups, *kernel], bias, stride, padding, output_padding, groups, dilation."""


def split_transposed_convolutions(graph: fx.GraphModule) -> list[Decision]:
    """Rewrite those with constant weights."""
    decisions: list[Decision] = []
    for node in list(graph.graph.nodes):
        weight = constant(graph, node.args[1]) if node.target in TRANSPOSED else None
        if (
            weight is None
            or len(shape_of(tensor_arg(node, 0))) != weight.dim()
            or weight.dtype is not torch.float32
        ):
            continue
        node.replace_all_uses_with(_split(graph, node, weight))
        graph.graph.erase_node(node)
        why = "integer kernels have convolutions, and no transposed ones"
        decisions.append(
            Decision(
                where=module_path(node) or node.name,
                what="transposed convolution as a convolution, interleaved",
                why=why,
            )
        )
    return decisions


def _split(graph: fx.GraphModule, node: fx.Node, weight: Tensor) -> fx.Node:
    x, _, bias, stride, padding, _, groups, dilation = arguments(node, None, [1], [0], [0], 1, [1], after=2)
    shape = shape_of(node)
    rank = weight.dim() - 2
    strides, pads, dilations = (each_axis(sizes, rank) for sizes in (stride, padding, dilation))

    def emit(target: Any, *args: Any) -> fx.Node:
        return call(graph, target, *args, before=node, like=node)

    phases, taps = phase_weights(weight, strides=strides, dilations=dilations, groups=int(groups))
    # The interleaved map starts at the full output's first element; what the padding takes off is sliced
    # away.
    lengths = list(shape_of(x)[2:])
    ends = [-(-(pads[i] + shape[2 + i]) // strides[i]) - lengths[i] for i in range(rank)]
    for i in range(rank):
        if ends[i] < 0:  # inputs that only the padding would have shown
            lengths[i], ends[i] = lengths[i] + ends[i], 0
            x = emit(aten.slice.Tensor, x, 2 + i, 0, lengths[i])
    before = [count - 1 for count in taps]
    if before != ends:
        flat: list[int] = []
        for first, last in zip(reversed(before), reversed(ends), strict=True):
            flat += [first, last]
        x = emit(aten.constant_pad_nd.default, x, flat, 0.0)
    name = module_path(node) or node.name
    new_weight = add_constant(graph, phases, name=f"{name}_weight", before=node)
    copies = phases.shape[0] // shape[1]
    new_bias = bias
    if bias is not None and copies > 1:
        values = constant(graph, bias)
        assert values is not None
        new_bias = add_constant(graph, values.repeat_interleave(copies), name=f"{name}_bias", before=node)
    convolution = aten.conv1d.default if rank == 1 else aten.conv2d.default
    inner = before if before == ends else [0] * rank
    y = emit(convolution, x, new_weight, new_bias, [1] * rank, inner, [1] * rank, int(groups))
    if copies > 1:
        sizes = [before[i] + ends[i] + lengths[i] - taps[i] + 1 for i in range(rank)]
        y = emit(aten.reshape.default, y, [-1, shape[1], *strides, *sizes])
        order = [axis for i in range(rank) for axis in (2 + rank + i, 2 + i)]
        y = emit(aten.permute.default, y, [0, 1, *order])
        y = emit(
            aten.reshape.default,
            y,
            [-1, shape[1], *(size * step for size, step in zip(sizes, strides, strict=True))],
        )
    for i in range(rank):
        if (pads[i], pads[i] + shape[2 + i]) != (0, shape_of(y)[2 + i]):
            y = emit(aten.slice.Tensor, y, 2 + i, pads[i], pads[i] + shape[2 + i])
    return y


def phase_weights(
    weight: Tensor, *, strides: Sequence[int], dilations: Sequence[int], groups: int
) -> tuple[Tensor, list[int]]:
    """Weights of the convolutions of all phases.

    Args:
        weight: float32 [C, O / groups, *kernel] of the transposed convolution.
        strides: for each axis of the kernel.
        dilations: for each axis of the kernel.
        groups: of the convolution.

    Returns:
        float32 [O * phases, C / groups, *taps], the phases of a channel side by side, and the taps of each
        axis.
    """
    rank = weight.dim() - 2
    spread = weight
    for i, dilation in enumerate(dilations):
        if dilation > 1:
            sizes = list(spread.shape)
            sizes[2 + i] = (sizes[2 + i] - 1) * dilation + 1
            wide = spread.new_zeros(sizes)
            wide[(slice(None),) * (2 + i) + (slice(None, None, dilation),)] = spread
            spread = wide
    taps = [-(-size // stride) for size, stride in zip(spread.shape[2:], strides, strict=True)]
    fill: list[int] = []
    for size, count, stride in zip(
        reversed(spread.shape[2:]), reversed(taps), reversed(strides), strict=True
    ):
        fill += [0, count * stride - size]
    spread = torch.nn.functional.pad(spread, fill)
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    split = spread.reshape(
        groups, inputs, outputs, *(n for pair in zip(taps, strides, strict=True) for n in pair)
    )
    taps_axes, phase_axes = [3 + 2 * i for i in range(rank)], [4 + 2 * i for i in range(rank)]
    ordered = split.permute(0, 2, *phase_axes, 1, *taps_axes).flip(tuple(range(-rank, 0)))
    return ordered.reshape(-1, inputs, *taps).contiguous(), taps
