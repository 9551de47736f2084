"""Weight scales moved by a few units in the last place, so that float32 requantisation gives the codes of
exact arithmetic.

A weight scale belongs to one channel and to nothing else, so it can move alone; the codes of the weights
stay, the bias is rounded again with it. The least move that works is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic import integer
from mixport.arithmetic.quant_params import QuantParams
from mixport.arithmetic.requantisation import Int, Requantisation, wrong_thresholds
from mixport.arithmetic.scale_grid import ANY_SCALE, ScaleGrid

_FURTHEST = 4096
"""Units in the last place: at most 0.05 % of a scale, a sixteenth of the step of the largest 8-bit weight."""
_TRIES = 32
"""Scales looked at together."""

Float = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The integers of one layer, and the codes on both sides of it.

    Attributes:
        codes: of the weights, [O, ...].
        bias: float32 [O], None without one.
        x: of the input; codes are [qmin, qmax] and, in padding, the zero point.
        y: of the output.
    """

    codes: NDArray[np.int8]
    bias: Float | None
    x: QuantParams
    y: QuantParams


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Scales after the search.

    Attributes:
        scales: float32 [O].
        channels: how many moved.
        furthest: largest move, in units in the last place.
        inexact: channels for which no scale within reach works; they keep theirs.
    """

    scales: Float
    channels: int
    furthest: int
    inexact: int


def exact_scales(layer: Layer, scales: Float, *, grid: ScaleGrid = ANY_SCALE) -> Moved:
    """Move the scales of the channels whose requantisation is inexact for some reachable sum.

    Args:
        layer: everything but the scales.
        scales: float32 [O], positive.
        grid: of the target; powers of two stay, one scale for all channels moves as one.
    """
    smallest, largest = _reach(layer)
    if not grid.moves_freely:
        return _exact_together(layer, scales, smallest, largest, may_move=not grid.power_of_two)
    bits = np.ascontiguousarray(scales, np.float32).view(np.int32).astype(np.int64)
    moves = np.zeros(len(scales), np.int64)
    open_channels = np.flatnonzero(_wrong(layer, scales, np.arange(len(scales)), smallest, largest))
    for offsets in _offsets():
        if not open_channels.size:
            break
        # The bits of positive floats are ordered as their values: one more is one unit in the last place
        # more.
        tried = (bits[open_channels, None] + offsets).astype(np.int32).view(np.float32)
        rows = np.repeat(open_channels, len(offsets))
        good = (_wrong(layer, tried.reshape(-1), rows, smallest, largest) == 0).reshape(tried.shape)
        found = good.any(1)
        moves[open_channels[found]] = offsets[good.argmax(1)[found]]
        open_channels = open_channels[~found]
    moved = (bits + moves).astype(np.int32).view(np.float32)
    return Moved(
        scales=moved,
        channels=int((moves != 0).sum()),
        furthest=int(np.abs(moves).max(initial=0)),
        inexact=int(open_channels.size),
    )


def _exact_together(layer: Layer, scales: Float, smallest: Int, largest: Int, *, may_move: bool) -> Moved:
    """The same for scales that move together or not at all: the least move that leaves the fewest channels
    inexact.
    """
    channels = np.arange(len(scales))
    bits = np.ascontiguousarray(scales, np.float32).view(np.int32)
    best, fewest, move = scales, int((_wrong(layer, scales, channels, smallest, largest) != 0).sum()), 0
    if may_move and fewest:
        for offset in next(_offsets()):
            tried = (bits + np.int32(offset)).view(np.float32)
            inexact = int((_wrong(layer, tried, channels, smallest, largest) != 0).sum())
            if inexact < fewest:
                best, fewest, move = tried, inexact, abs(int(offset))
            if not fewest:
                break
    return Moved(scales=best, channels=len(scales) if move else 0, furthest=move, inexact=fewest)


def _offsets() -> Iterator[Int]:
    """1, -1, 2, -2, ... in blocks."""
    ordered = np.stack([np.arange(1, _FURTHEST + 1), -np.arange(1, _FURTHEST + 1)], axis=1).reshape(-1)
    yield from np.split(ordered, range(_TRIES, len(ordered), _TRIES))


def _reach(layer: Layer) -> tuple[Int, Int]:
    """Smallest and largest sum of each channel, without bias."""
    rows = layer.codes.reshape(len(layer.codes), -1).astype(np.int64)
    positive, negative = np.maximum(rows, 0).sum(1), np.minimum(rows, 0).sum(1)
    up, down = max(layer.x.qmax - layer.x.zero_point, 0), min(layer.x.qmin - layer.x.zero_point, 0)
    return positive * down + negative * up, positive * up + negative * down


def _wrong(layer: Layer, scales: Float, channels: Int, smallest: Int, largest: Int) -> Int:
    """Wrong thresholds of scales[i] in channel channels[i]."""
    bias = np.zeros(len(channels), np.int64)
    if layer.bias is not None:
        bias = integer.quantise_bias(layer.bias[channels], x_scale=layer.x.scale, w_scale=scales)[0].astype(
            np.int64
        )
    rule = Requantisation(
        x_scale=layer.x.scale,
        w_scale=scales,
        y_scale=layer.y.scale,
        zero_point=layer.y.zero_point,
        qmin=layer.y.qmin,
        qmax=layer.y.qmax,
    )
    return wrong_thresholds(rule, low=smallest[channels] + bias, high=largest[channels] + bias)
