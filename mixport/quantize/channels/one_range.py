"""One range for all channels of a tensor: which shift and ratio to give each channel before it is quantised
per tensor.

y = (x - shift) / ratio, and the layer that reads y takes ratio * weight. RepQ-ViT (ICCV 2023) makes all
ranges equal: exponent 1. That is best for the activation and worst for the weight, whose columns then differ
as the channels did. The shift is free, the bias takes it: by the middle of a channel its codes are used
evenly, by its mean the error of the weights no longer moves the output's mean. So the exponent, the shift,
and where a range ends are chosen by the error of the layer's own output.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from mixport.arithmetic.integer import quantise
from mixport.quantize.scales.histograms import histogram_of
from mixport.quantize.scales.ranges import ScaleRule, activation_params, weight_scales

Array = NDArray[np.float64]
Float = NDArray[np.float32]

_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_TAILS = (0.0, 0.01)
"""Share of a channel's values beyond either end of its range."""
_LARGEST_RATIO = 64.0
"""Of two channels' ratios to their mean; a channel that is almost constant needs no more room than this
gives.
"""
_ROWS, _OUTPUTS = 1024, 128
"""Tokens and output channels on which candidates are compared."""


@dataclass(frozen=True, kw_only=True)
class ChannelAffine:
    """What to do with the channels of one tensor.

    Attributes:
        shift: float64 [C], subtracted first.
        ratio: float64 [C], positive, divided by then.
        exponent: of the ratio; 1 makes all ranges equal, 0 leaves their widths alone.
        before: relative squared error of the layer's output, both operands quantised, with neither shift nor
            ratio.
        after: the same with both.
    """

    shift: Array
    ratio: Array
    exponent: float
    before: float
    after: float


def choose_affine(
    sample: Float, weight: Float, *, activation_bits: int, weight_bits: int, rule: ScaleRule
) -> ChannelAffine:
    """The shift and ratio with the least output error, rounding to nearest.

    Args:
        sample: tokens of the tensor, float32 [N, C], N and C at least 1.
        weight: of the layers that read it, one below the other, float32 [O, C].
        activation_bits: width of the tensor's codes.
        weight_bits: width of the layers' weights.
        rule: what the target allows of activation scales.
    """
    rows, outputs = _spread(sample, _ROWS), _spread(weight, _OUTPUTS)
    exact = np.asarray(rows @ outputs.T, np.float64)
    power = max(float(((exact - exact.mean(0)) ** 2).mean()), np.finfo(np.float64).tiny)

    def best_of(ratio: Array, shifts: Iterable[Array]) -> tuple[float, Array]:
        weight_codes = rounded_weight((outputs * ratio).astype(np.float32), bits=weight_bits)
        errors: list[tuple[float, Array]] = []
        for shift in shifts:
            x = ((rows - shift) / ratio).astype(np.float32)
            got = rounded(x, bits=activation_bits, rule=rule) @ weight_codes.T
            wanted = exact - outputs.astype(np.float64) @ shift
            errors.append((float(((got - wanted) ** 2).mean()) / power, shift))
        return min(errors, key=lambda pair: pair[0])

    mean = np.asarray(sample.mean(0, dtype=np.float64), np.float64)
    before, _ = best_of(np.ones_like(mean), [np.zeros_like(mean)])
    best: ChannelAffine | None = None
    for tail, exponent in product(_TAILS, _EXPONENTS):
        middle, half = _ranges(sample, tail)
        ratio = _ratios(half, exponent)
        after, shift = best_of(ratio, (middle, mean))
        if best is None or after < best.after:
            best = ChannelAffine(shift=shift, ratio=ratio, exponent=exponent, before=before, after=after)
    assert best is not None
    return best


def _ranges(sample: Float, tail: float) -> tuple[Array, Array]:
    """Middle and half width of each channel's range."""
    low, high = np.quantile(sample, [tail, 1.0 - tail], axis=0).astype(np.float64)
    return (low + high) / 2, (high - low) / 2


def _ratios(half: Array, exponent: float) -> Array:
    """Half widths over their geometric mean, bounded, to the power of the exponent; constant channels take
    the smallest.
    """
    live = half > 0
    if not live.any():
        return np.ones_like(half)
    mean = np.exp(np.log(half[live]).mean())
    return np.clip(half / mean, 1.0 / _LARGEST_RATIO, _LARGEST_RATIO) ** exponent


def _spread(rows: Float, count: int) -> Float:
    """At most about `count` rows at even distances."""
    return np.ascontiguousarray(rows[:: max(1, len(rows) // count)])


def rounded(
    x: Float, *, bits: int, rule: ScaleRule, bounds: tuple[float, float | None] | None = None
) -> Float:
    """What the activation quantiser to come makes of a tensor, behind an absorbed clamp where there are
    bounds.
    """
    p = activation_params(
        histogram_of(torch.as_tensor(x)), bits=bits, storage="uint8", bounds=bounds, rule=rule
    )
    codes = quantise(x, scale=p.scale, zero_point=p.zero_point, qmin=p.qmin, qmax=p.qmax)
    return (codes.astype(np.float32) - np.float32(p.zero_point)) * np.float32(p.scale)


def rounded_weight(weight: Float, *, bits: int) -> Float:
    """Weights [O, ...] rounded to nearest, with a scale for each output."""
    scales, codes = weight_scales(weight, bits=bits)
    return codes.astype(np.float32) * scales[:, None]
