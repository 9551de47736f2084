"""Where a crafted window goes: the input of a layer in which one output position reads exactly the window,
free of padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixport.validate.crafted.craft import Int
from mixport.validate.interpreter.fused_units import CodeInput, FusedUnit
from mixport.validate.interpreter.graph import Array

#: Multiplications that one run of crafted windows may cost.
_BUDGET = 1 << 29

#: Crafted rows (windows times groups) of one run: a depthwise layer crafts all its channels in every window.
_MOST_ROWS = 1 << 13

#: Output positions around the crafted one, so that vector kernels have something to do.
_MARGIN = 3


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How windows become inputs.

    Attributes:
        groups: convolution groups; 1 for a Gemm or MatMul.
        channels: input channels a group.
        kernel: spatial kernel, empty for a Gemm or MatMul.
        dilations: as long as kernel.
        starts: where the window starts on each spatial axis.
        sizes: of the spatial axes.
        most_windows: how many windows of one kind fit the budget.
    """

    groups: int
    channels: int
    kernel: tuple[int, ...]
    dilations: tuple[int, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    most_windows: int


def layout_of(unit: FusedUnit) -> Layout:
    """Choose the smallest input that holds a window free of padding, with a margin where that is cheap."""
    assert unit.weight is not None
    kernel = unit.weight.shape[2:]
    attributes: Mapping[str, Any] = unit.node.attributes if unit.kind == "conv" else {}
    groups: int = attributes.get("group", 1)
    rank = len(kernel)
    strides = attributes.get("strides", (1,) * rank)
    dilations = tuple(attributes.get("dilations", (1,) * rank))
    pads = attributes.get("pads", (0,) * 2 * rank)
    cost = unit.weight.size
    margin = _MARGIN if cost * (_MARGIN + 1) ** rank * 256 <= _BUDGET else 0
    starts, sizes = list[int](), list[int]()
    for axis in range(rank):
        position = -(-pads[axis] // strides[axis])
        starts.append(position * strides[axis] - pads[axis])
        sizes.append(starts[axis] + dilations[axis] * (kernel[axis] - 1) + 1 + margin * strides[axis])
    outputs = int(
        np.prod(
            [
                _outputs(sizes[i], kernel[i], strides[i], dilations[i], pads[i] + pads[rank + i])
                for i in range(rank)
            ]
        )
    )
    return Layout(
        groups=groups,
        channels=unit.weight.shape[1],
        kernel=kernel,
        dilations=dilations,
        starts=tuple(starts),
        sizes=tuple(sizes),
        most_windows=max(4, min(256, _BUDGET // max(1, cost * outputs), _MOST_ROWS // groups)),
    )


def place(codes: Int, layout: Layout, source: CodeInput, rng: np.random.Generator) -> Array:
    """Put windows [T, groups, K] into inputs [T, C, ...] whose other codes are random."""
    count = codes.shape[0]
    if not layout.kernel:
        return codes.reshape(count, -1).astype(source.dtype)
    channels = layout.groups * layout.channels
    x = rng.integers(source.low, source.high + 1, (count, channels, *layout.sizes))
    window = tuple(
        slice(start, start + dilation * (size - 1) + 1, dilation)
        for start, dilation, size in zip(layout.starts, layout.dilations, layout.kernel, strict=True)
    )
    x[(slice(None), slice(None), *window)] = codes.reshape(count, channels, *layout.kernel)
    return x.astype(source.dtype)


def _outputs(size: int, kernel: int, stride: int, dilation: int, pads: int) -> int:
    return (size + pads - dilation * (kernel - 1) - 1) // stride + 1
