"""Convolutions of few input channels, such as the first one of an image model, in forms that a target's
kernels take directly.

MLAS (ONNX Runtime's kernels) convolves without a copy of its input only where the channels come in fours;
else it copies each patch, a row of the kernel at a time, and multiplies rows of 27 bytes. Measured with
onnxruntime 1.32 on x64, three channels to 16 or more:

1. Strides of 2 and 4: the pixels of one stride become channels (SpaceToDepth), the kernel is spread over them
   and moves by 1. A 3x3 kernel takes 0.66 of the time, 5x5 0.61, 7x7 0.60, 4x4 by steps of 4 0.68.
2. Strides up to 3, or where 1. would multiply by many zeros: channels of zeros up to the next multiple.
  Between 0.4 and 0.9.

Patches of 8 pixels and more, and convolutions of four channels, gain nothing by either, and stay. Each sum
holds the same products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from mixport.arithmetic.torch_ops import OPS
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
from mixport.records.targets import Target

_BLOCKS = (2, 4)
"""Strides whose pixels become channels."""
_WIDEST_STEP = 3
"""Largest stride at which channels of zeros pay: patches overlap less with each more."""
_MOST_ZEROS = 4 / 3
"""Weights with the pixels as channels, against those with channels of zeros, up to which the former is no
slower.
"""


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Rows or columns of a convolution in blocks of `step` pixels.

    Attributes:
        before: zeros in front, in pixels.
        after: zeros behind.
        kernel: taps.
        size: of the image.
        step: stride, a divisor of size.
    """

    before: int
    after: int
    kernel: int
    size: int
    step: int

    @property
    def blocks_before(self) -> int:
        """The fewest blocks that hold the zeros in front."""
        return -(-self.before // self.step)

    @property
    def offset(self) -> int:
        """Pixels of the first block that the kernel does not reach."""
        return self.blocks_before * self.step - self.before

    @property
    def blocks(self) -> int:
        """Blocks under the kernel."""
        return -(-(self.offset + self.kernel) // self.step)

    @property
    def blocks_after(self) -> int:
        """Blocks that the last kernel reaches beyond the image."""
        outputs = (self.size + self.before + self.after - self.kernel) // self.step + 1
        return outputs - 1 + self.blocks - self.blocks_before - self.size // self.step


def widen_few_channels(graph: fx.GraphModule, target: Target) -> list[Decision]:
    """Rewrite the convolutions that read fewer channels than the target's kernels take at once; one decision
    each.

    Weights are spread before anything is rounded: which of them are neighbours matters to sums of two
    products (`mixport.arithmetic.neighbour_pairs`).

    Args:
        graph: captured float graph, with recorded shapes, channels levelled.
        target: what its kernels take, and which operators it has.
    """
    rules = target.convolutions
    if rules.channel_multiple is None:
        return []
    made: dict[tuple[Any, ...], fx.Node] = {}
    decisions: list[Decision] = []
    for node in list(graph.graph.nodes):
        weight = constant(graph, node.args[1]) if node.target is aten.conv2d.default else None
        if weight is None or weight.dtype is not torch.float32 or len(shape_of(tensor_arg(node, 0))) != 4:
            continue
        groups = int(arguments(node, None, [1, 1], [0, 0], [1, 1], 1, after=2)[6])
        if groups != 1 or weight.shape[1] >= rules.channel_multiple or weight.shape[0] < rules.least_outputs:
            continue
        stem = _Stem(graph=graph, node=node, weight=weight, made=made)
        what = stem.rewrite(rules.channel_multiple, operators=target.operators.integer)
        if what is not None:
            why = (
                f"integer convolutions take channels in groups of {rules.channel_multiple}; the added "
                "weights are 0"
            )
            decisions.append(Decision(where=module_path(node) or node.name, what=what, why=why))
    return decisions


@dataclass(frozen=True, kw_only=True)
class _Stem:
    """One convolution, and the rewritten inputs that others have already."""

    graph: fx.GraphModule
    node: fx.Node
    weight: Tensor
    made: dict[tuple[Any, ...], fx.Node]

    def rewrite(self, multiple: int, *, operators: Sequence[str]) -> str | None:
        """Rewrite in place; what was done, None where nothing was."""
        _, _, _, strides, padding, dilation, _ = arguments(
            self.node, None, [1, 1], [0, 0], [1, 1], 1, after=2
        )
        stride, dilation = each_axis(strides, 2), each_axis(dilation, 2)
        source, (left, right, top, bottom) = self._source(each_axis(padding, 2))
        channels, *kernel = self.weight.shape[1:]
        filled = -(-channels // multiple) * multiple
        step = stride[0]
        sizes = shape_of(source)[2:]
        divisible = (
            stride[0] == stride[1]
            and step in _BLOCKS
            and dilation == [1, 1]
            and not any(size % step for size in sizes)
        )
        if divisible and "SpaceToDepth" in operators and not step * step * channels % multiple:
            rows, columns = (
                _Axis(before=before, after=after, kernel=taps, size=size, step=step)
                for before, after, taps, size in zip((top, left), (bottom, right), kernel, sizes, strict=True)
            )
            area = rows.blocks * columns.blocks * step * step * channels
            if area <= _MOST_ZEROS * filled * kernel[0] * kernel[1]:
                self._spread(source, rows, columns)
                return (
                    f"{step} x {step} pixels as {step * step * channels} channels, the kernel "
                    f"{kernel[0]} x {kernel[1]} with stride {step} "
                    f"as {rows.blocks} x {columns.blocks}"
                )
        if max(stride) > _WIDEST_STEP or "Pad" not in operators:
            return None
        self._fill(source, filled - channels, pads=[left, right, top, bottom], rest=(stride, dilation))
        return f"{filled - channels} channels of zeros added to the {channels} that it reads"

    def _source(self, padding: list[int]) -> tuple[fx.Node, list[int]]:
        """What lies in front of the convolution and of a pad by zeros, and the zeros left, right, top and
        bottom of it.
        """
        x, amounts = tensor_arg(self.node, 0), [0, 0, 0, 0]
        if x.target is aten.constant_pad_nd.default:
            source, pads, value = arguments(x, 0.0, after=2)
            if value == 0 and not any(pads[4:]):
                x, amounts = source, [*(int(pad) for pad in pads[:4]), 0, 0, 0, 0][:4]
        rows, columns = padding
        return x, [own + zeros for own, zeros in zip((columns, columns, rows, rows), amounts, strict=True)]

    def _spread(self, source: fx.Node, rows: _Axis, columns: _Axis) -> None:
        outputs, channels, step = self.weight.shape[0], self.weight.shape[1], rows.step
        whole = self.weight.new_zeros((outputs, channels, rows.blocks * step, columns.blocks * step))
        taps = tuple(slice(axis.offset, axis.offset + axis.kernel) for axis in (rows, columns))
        whole[:, :, taps[0], taps[1]] = self.weight
        blocks = whole.reshape(outputs, channels, rows.blocks, step, columns.blocks, step).permute(
            0, 3, 5, 1, 2, 4
        )
        spread = blocks.reshape(outputs, step * step * channels, rows.blocks, columns.blocks).contiguous()
        x = self._once(OPS.space_to_depth.default, source, step)
        pads = [columns.blocks_before, columns.blocks_after, rows.blocks_before, rows.blocks_after]
        self._replace(x, spread, pads=pads, rest=([1, 1], [1, 1]))

    def _fill(
        self, source: fx.Node, extra: int, *, pads: list[int], rest: tuple[list[int], list[int]]
    ) -> None:
        outputs, _, *kernel = self.weight.shape
        filled = torch.cat([self.weight, self.weight.new_zeros((outputs, extra, *kernel))], dim=1)
        x = self._once(aten.constant_pad_nd.default, source, (0, 0, 0, 0, 0, extra), 0.0)
        self._replace(x, filled, pads=pads, rest=rest)

    def _replace(
        self, x: fx.Node, weight: Tensor, *, pads: list[int], rest: tuple[list[int], list[int]]
    ) -> None:
        """Give the convolution its new operands; pads that differ on two sides are an operator of their
        own.
        """
        left, right, top, bottom = pads
        padding = [top, left]
        if (left, top) != (right, bottom):
            x, padding = self._emit(aten.constant_pad_nd.default, x, pads, 0.0), [0, 0]
        stride, dilation = rest
        name = f"{module_path(self.node) or self.node.name}_weight"
        constant_node = add_constant(self.graph, weight, name=name, before=self.node)
        bias = arguments(self.node, None, after=2)[2]
        self.node.args = (x, constant_node, bias, stride, padding, dilation, 1)

    def _emit(self, operator: Any, *args: Any) -> fx.Node:
        return call(self.graph, operator, *args, before=self.node, like=self.node)

    def _once(self, operator: Any, source: fx.Node, *args: Any) -> fx.Node:
        """The input in its new form, made for the first convolution that reads it so."""
        key = (operator, source, args)
        if key not in self.made:
            self.made[key] = self._emit(
                operator,
                source,
                *(list(cast("tuple[int, ...]", a)) if isinstance(a, tuple) else a for a in args),
            )
        return self.made[key]
