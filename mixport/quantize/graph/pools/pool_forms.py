"""Average pools written as layers whose integer weights are all 1, so that they are exact on every runtime.

1. Windows that all divide by the same count: one depthwise convolution, padding included.
2. A few runs of windows that are alike (cut at the border by ceil_mode, or not counting the padding): a
   depthwise convolution for each block of rows and columns, joined again.
3. Irregular windows on small maps (adaptive pools): one linear layer over the positions.

ONNX Runtime 1.32 fuses an AveragePool between codes into QLinearAveragePool, which divides windows that
ceil_mode cuts off by the full window. So an average pool that stays an ONNX AveragePool is the last resort.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from mixport.arithmetic.torch_ops import OPS
from mixport.model.programs.fx_graph import (
    add_constant,
    arguments,
    aten,
    call,
    each_axis,
    module_path,
    shape_of,
    tensor_arg,
)
from mixport.quantize.graph.pools.pool_windows import (
    Window,
    WindowRun,
    adaptive_windows,
    are_whole,
    runs,
    strided_windows,
)
from mixport.records.errors import UnsupportedModelError

GLOBAL_AVERAGE_POOL = OPS.global_average_pool.default
_STRIDED = MappingProxyType(
    {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}
)
_ADAPTIVE = MappingProxyType(
    {
        aten.adaptive_avg_pool1d.default: 1,
        aten.adaptive_avg_pool2d.default: 2,
        aten.adaptive_avg_pool3d.default: 3,
    }
)
AVERAGE_POOLS: Mapping[Any, int] = MappingProxyType({**_STRIDED, **_ADAPTIVE})
"""Operator -> axes of space that it averages over, the last ones."""

_MOST_BLOCKS = 9
"""Three by three: the inside, and a border on each side."""
_MOST_LINEAR = 1 << 20
"""Weights of the linear layer for irregular windows, one byte each."""
_MOST_BLOCKS_AT_ALL = 64


@dataclass(frozen=True, kw_only=True)
class AveragePool:
    """The pool's result in its new form, and what that form is called."""

    result: fx.Node
    what: str


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Windows along one axis of `size` elements, in reach of `padding` zeros on both sides; `stride` is the
    operator's, 0 without one.
    """

    windows: tuple[Window, ...]
    size: int
    stride: int = 0
    padding: int = 0


def _untouched(size: int) -> _Axis:
    """An axis that the pool leaves as it is."""
    return _Axis(windows=adaptive_windows(size, size), size=size)


def average_pool(graph: fx.GraphModule, node: fx.Node) -> AveragePool | None:
    """Write one of AVERAGE_POOLS as layers; None where it has to stay as it is.

    A pool over three axes is done in two steps, each of which gives codes: over rows and columns, then over
    depth.

    Args:
        graph: canonical graph with recorded shapes.
        node: the pool; what replaces it is inserted before.

    Raises:
        UnsupportedModelError: windows too irregular, in a form that has no right ONNX operator.
    """
    rank, x = AVERAGE_POOLS[node.target], tensor_arg(node, 0)
    shape = shape_of(x)
    if not node.meta.get("is_float", False) or len(shape) not in (rank + 1, rank + 2):
        return None
    emitter = _Emitter(graph=graph, node=node)
    axes, divisor = (
        _adaptive(node, shape[-rank:]) if node.target in _ADAPTIVE else _strided(node, shape[-rank:])
    )
    if len(shape) == 4 and rank == 2:
        everything = node.target in _ADAPTIVE and all(len(axis.windows) == 1 for axis in axes)
        return emitter.everything(x) if everything else emitter.pool(x, axes, divisor)
    channels, batch = shape[-rank - 1], [-1] if len(shape) == rank + 2 else []
    sizes = [len(axis.windows) for axis in axes]
    if rank == 3:
        first = emitter.pool(
            emitter.view(x, [-1, channels * shape[-3], *shape[-2:]]), axes[1:], 1 if divisor else None
        )
        if first is None:
            return None
        positions = sizes[1] * sizes[2]
        pooled = emitter.pool(
            emitter.view(first.result, [-1, channels, shape[-3], positions]),
            [axes[0], _untouched(positions)],
            divisor,
        )
    else:
        rows = [_untouched(1)] if rank == 1 else []
        pooled = emitter.pool(
            emitter.view(x, [-1, channels, *(axis.size for axis in (*rows, *axes))]), [*rows, *axes], divisor
        )
    if pooled is None:
        return None
    return AveragePool(result=emitter.view(pooled.result, [*batch, channels, *sizes]), what=pooled.what)


def _adaptive(node: fx.Node, shape: Sequence[int]) -> tuple[list[_Axis], None]:
    outputs = [int(size) for size in arguments(node)[1]]
    return [
        _Axis(windows=adaptive_windows(size, count), size=size)
        for size, count in zip(shape, outputs, strict=True)
    ], None


def _strided(node: fx.Node, shape: Sequence[int]) -> tuple[list[_Axis], int | None]:
    _, kernel, stride, padding, ceil_mode, include_pad, divisor = arguments(
        node, [], [0], False, True, None, after=2
    )[:7]
    rank = len(shape)
    kernels, strides, pads = (each_axis(sizes, rank) for sizes in (kernel, stride or kernel, padding))
    counted = bool(include_pad) or divisor is not None
    axes = [
        _Axis(
            windows=strided_windows(
                size,
                kernel=kernels[i],
                stride=strides[i],
                padding=pads[i],
                ceil_mode=bool(ceil_mode),
                include_pad=counted,
            ),
            size=size,
            stride=strides[i],
            padding=pads[i] if counted else 0,
        )
        for i, size in enumerate(shape)
    ]
    return axes, divisor


@dataclass(frozen=True, kw_only=True)
class _Emitter:
    graph: fx.GraphModule
    node: fx.Node

    def emit(self, target: Any, *args: Any) -> fx.Node:
        return call(self.graph, target, *args, before=self.node, like=self.node)

    def view(self, x: fx.Node, shape: Sequence[int]) -> fx.Node:
        return self.emit(aten.reshape.default, x, list(shape))

    def everything(self, x: fx.Node) -> AveragePool:
        return AveragePool(result=self.emit(GLOBAL_AVERAGE_POOL, x), what="global average pool")

    def pool(self, x: fx.Node, axes: Sequence[_Axis], divisor: int | None) -> AveragePool | None:
        """Over rows and columns of x, [N, C, rows, columns]."""
        if divisor is None and all(are_whole(axis.windows, axis.size) for axis in axes):
            return AveragePool(result=x, what="nothing: each window is one element")
        rows, columns = (runs(axis.windows) for axis in axes)
        blocks = len(rows) * len(columns)
        weights = math.prod(len(axis.windows) * (axis.size + 2 * axis.padding) for axis in axes)
        if blocks > _MOST_BLOCKS_AT_ALL and weights > _MOST_LINEAR:
            return self._irregular()
        if blocks == 1 and rows[0].start == columns[0].start == 0:
            lengths = [run.windows[0].length for run in (rows[0], columns[0])]
            count = divisor or rows[0].windows[0].count * columns[0].windows[0].count
            strides = [
                run.step if len(run.windows) > 1 else axis.stride or 1
                for axis, run in zip(axes, (rows[0], columns[0]), strict=True)
            ]
            pads = [axis.padding for axis in axes]
            pooled = self._convolve(x, kernel=lengths, stride=strides, padding=pads, count=count)
            return AveragePool(result=pooled, what="depthwise convolution")
        if any(axis.padding for axis in axes):
            (top, left) = (axis.padding for axis in axes)
            x = self.emit(aten.constant_pad_nd.default, x, [left, left, top, top], 0.0)
        if blocks <= _MOST_BLOCKS or weights > _MOST_LINEAR:
            bands = [
                self._joined([self._block(x, row, column, divisor) for column in columns], 3) for row in rows
            ]
            return AveragePool(result=self._joined(bands, 2), what=f"{blocks} depthwise convolutions, joined")
        flat = self.emit(aten.flatten.using_ints, x, 2)
        weight = add_constant(
            self.graph, _positions(axes, divisor), name=f"{self.node.name}_average", before=self.node
        )
        pooled = self.emit(aten.linear.default, flat, weight)
        return AveragePool(
            result=self.view(pooled, [-1, shape_of(x)[1], *(len(axis.windows) for axis in axes)]),
            what="linear layer",
        )

    def _irregular(self) -> None:
        if self.node.target in _STRIDED and bool(arguments(self.node, [], [0], False, after=2)[4]):
            where = module_path(self.node) or self.node.name
            raise UnsupportedModelError(
                (
                    f"{where}: an average pool with ceil_mode whose windows are all different has no "
                    "exact ONNX form"
                ),
                hint="drop ceil_mode, or pad the map so that no window is cut",
            )

    def _block(self, x: fx.Node, row: WindowRun, column: WindowRun, divisor: int | None) -> fx.Node:
        height, width = shape_of(x)[2:]
        for axis, run, size in ((2, row, height), (3, column, width)):
            if (run.start, run.stop) != (0, size):
                x = self.emit(aten.slice.Tensor, x, axis, run.start, run.stop)
        first = row.windows[0], column.windows[0]
        return self._convolve(
            x,
            kernel=[window.length for window in first],
            stride=[row.step, column.step],
            padding=[0, 0],
            count=divisor or first[0].count * first[1].count,
        )

    def _convolve(
        self, x: fx.Node, *, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], count: int
    ) -> fx.Node:
        channels = shape_of(x)[1]
        value = torch.full((channels, 1, *kernel), 1.0 / count)
        weight = add_constant(self.graph, value, name=f"{self.node.name}_average", before=self.node)
        return self.emit(aten.conv2d.default, x, weight, None, list(stride), list(padding), [1, 1], channels)

    def _joined(self, parts: list[fx.Node], axis: int) -> fx.Node:
        return parts[0] if len(parts) == 1 else self.emit(aten.cat.default, parts, axis)


def _positions(axes: Sequence[_Axis], divisor: int | None) -> Tensor:
    """Weight of the linear layer, float32 [outputs, positions]: 1 / count where an output reads a position of
    the padded map.
    """
    matrices: list[Tensor] = []
    for axis in axes:
        matrix = torch.zeros(len(axis.windows), axis.size + 2 * axis.padding, dtype=torch.float64)
        for i, window in enumerate(axis.windows):
            matrix[i, window.start : window.stop] = 1.0 / (1 if divisor else window.count)
        matrices.append(matrix)
    return (torch.kron(*matrices) / (divisor or 1)).float()
