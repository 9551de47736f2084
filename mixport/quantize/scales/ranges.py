"""Scales and zero points that minimise the L_p error (p = 2.4, as BRECQ and QDrop use) of weights and of
activation histograms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic.dtypes import STORAGE_RANGE, IntType, Storage
from mixport.arithmetic.integer import quantise
from mixport.arithmetic.quant_params import QuantParams
from mixport.arithmetic.scale_grid import ANY_SCALE, ScaleGrid
from mixport.quantize.scales.histograms import Histogram

P = 2.4
ATTENTION_P = 2.0
"""Of attention weights: they average values, so squared errors add up, and the many small ones together
matter as the few large do.
"""
_SHRINKS = np.linspace(1.0, 0.2, 81)
"""Shares of a range that are tried."""
_WIDTHS = np.geomspace(1.0, 0.1, 48)
"""Shares of the scale of the whole range that are tried where one side alone is cut."""
_HALVINGS = 4
"""Powers of two that are tried for a weight of more than 4 bits, from the one that holds its largest
value."""
_ZERO_POINTS = 8
"""Tried for each width of a range with two sides."""

OUTPUT_MARGIN = 1.25
"""Of outputs that are codes: other images reach further than those of calibration, and the largest output is
the one that counts. A step a quarter wider is 2 dB more noise.
"""

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ScaleRule:
    """What a target allows of scales and zero points.

    Attributes:
        zero_point: of activations; `middle` is the middle code of every range (0 of signed codes).
        grid: of scales.
    """

    zero_point: Literal["any", "middle"] = "any"
    grid: ScaleGrid = ANY_SCALE

    @property
    def power_of_two(self) -> bool:
        """See ScaleGrid."""
        return self.grid.power_of_two


def activation_params(
    histogram: Histogram,
    *,
    bits: int,
    storage: Storage,
    bounds: tuple[float, float | None] | None,
    rule: ScaleRule,
    power: float = P,
    margin: float | None = None,
) -> QuantParams:
    """Best per-tensor parameters for one free activation.

    Args:
        histogram: of the tensor, behind its absorbed clamp.
        bits: width; codes use the lowest 2^bits values of an unsigned storage type.
        storage: uint8 (any width up to 8) or int16 (streams: full range, symmetric).
        bounds: of the absorbed clamp.
        rule: of the target.
        power: of the error that is least.
        margin: codes reach so many times as far as the values seen, and cut none of them; None reaches where
            the error is least.
    """
    low, high = _span(histogram, bounds)
    if storage == "int16":
        scale = float(rule.grid.snap(np.float32(max(abs(low), abs(high)) / 32767), up=True))
        return _finish(scale, 0, bits, storage, None)
    levels = 2**bits - 1
    if margin is not None:
        return _finish(*_affine(low * margin, high * margin, levels, rule), bits, storage, bounds)
    values, counts = histogram.fine
    best, best_error = (max(high - low, 1e-8) / levels, 0), np.inf
    for low_shrink in _SHRINKS if low < 0 < high else (1.0,):
        shrinks = (
            _SHRINKS
            if not low < 0 < high
            else [s for s in (low_shrink, 1.0, 0.9, 0.8, 0.65, 0.5) if s <= 1.0]
        )
        for high_shrink in shrinks:
            scale, zero_point = _affine(low * low_shrink, high * high_shrink, levels, rule)
            error = histogram_error(
                values, counts, scale=scale, zero_point=zero_point, levels=levels, power=power
            )
            if error < best_error:
                best, best_error = (scale, zero_point), error
    if low < 0.0 < high and rule.zero_point == "any" and not rule.power_of_two:
        for scale, zero_point in _two_sided(low, high, levels):
            error = histogram_error(
                values, counts, scale=scale, zero_point=zero_point, levels=levels, power=power
            )
            if error < best_error:
                best, best_error = (scale, zero_point), error
    return _finish(*best, bits, storage, bounds)


def _two_sided(low: float, high: float, levels: int) -> Iterator[tuple[float, int]]:
    """Scales with zero points that cut one side alone.

    The short side of a lopsided tensor (GELU: -0.17 to 9) must keep its one code when the long side is cut:
    shrinking both loses it.
    """
    for width in _WIDTHS:
        scale = float(np.float32((high - low) / levels * width))
        whole_low, whole_high = int(np.ceil(-low / scale)), levels - int(np.ceil(high / scale))
        first, last = sorted(int(np.clip(z, 0, levels)) for z in (whole_high, whole_low))
        for zero_point in np.unique(
            np.linspace(first, last, min(last - first + 1, _ZERO_POINTS)).astype(np.int64)
        ):
            yield scale, int(zero_point)


def histogram_error(
    values: Array, counts: Array, *, scale: float, zero_point: int, levels: int, power: float = P
) -> float:
    """Sum of counts * |dequantised - value|^power."""
    codes = np.clip(np.rint(values / scale), -zero_point, levels - zero_point)
    return float((counts * np.abs(codes * scale - values) ** power).sum())


def carrier_zero_point(
    histogram: Histogram,
    *,
    scale: float,
    levels: int,
    bounds: tuple[float, float | None] | None,
    rule: ScaleRule,
) -> tuple[int, float]:
    """Best zero point for a given scale, and its error. Relu-like carriers take 0."""
    low, high = _span(histogram, bounds)
    values, counts = histogram.coarse
    if rule.zero_point == "middle":
        half = (levels + 1) // 2
        return half, histogram_error(values, counts, scale=scale, zero_point=half, levels=levels)
    if low >= 0.0:
        return 0, histogram_error(values, counts, scale=scale, zero_point=0, levels=levels)
    first = int(np.clip(np.rint(-low / scale), 0, levels))
    last = int(np.clip(levels - np.rint(high / scale), 0, levels))
    candidates = sorted({first, last, (first + last) // 2, (levels + 1) // 2})
    errors = [histogram_error(values, counts, scale=scale, zero_point=z, levels=levels) for z in candidates]
    best = int(np.argmin(errors))
    return candidates[best], errors[best]


def finish_carrier(
    *, scale: float, zero_point: int, bits: int, storage: Storage, bounds: tuple[float, float | None] | None
) -> QuantParams:
    """Parameters of a carrier whose scale was chosen by its group."""
    return _finish(scale, zero_point, bits, storage, bounds)


def weight_scales(
    weight: NDArray[np.float32], *, bits: int, grid: ScaleGrid = ANY_SCALE
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Symmetric scales, one for each output channel or one for all, that minimise the L_p error, and the
    codes.

    8-bit weights use [-127, 127]; narrower ones their full two's complement range. The search is coarse, then
    fine around each channel's best; an all-zero channel gets zeros.

    Args:
        weight: float32 [O, ...].
        bits: 2 to 8.
        grid: of the target.

    Returns:
        float32 [O] scales, int8 codes with the weight's shape.
    """
    kind = IntType(bits=bits, signed=True, narrow=bits == 8)
    flat = weight.reshape(1 if grid.per_tensor else len(weight), -1).astype(np.float32)
    widest = np.maximum(flat.max(1) / kind.qmax, flat.min(1) / kind.qmin).astype(np.float32)
    widest = np.where(widest > 0, widest, np.float32(1.0))
    best, best_shrink = widest, np.ones(len(flat), np.float32)
    best_error = np.full(len(flat), np.inf)

    def consider(shrink: NDArray[np.float32]) -> None:
        nonlocal best, best_shrink, best_error
        scale = np.maximum(widest * shrink, np.finfo(np.float32).tiny)
        wide = scale[:, None]
        difference = np.abs(np.clip(np.rint(flat / wide), kind.qmin, kind.qmax) * wide - flat)
        error = np.power(difference, np.float32(P)).sum(1, dtype=np.float64)
        better = error < best_error
        best, best_shrink = np.where(better, scale, best), np.where(better, shrink, best_shrink)
        best_error = np.where(better, error, best_error)

    if grid.power_of_two:
        widest = grid.snap(widest, up=True)
        for halvings in range(_HALVINGS if bits > 4 else _HALVINGS + 2):
            consider(np.full(len(flat), 2.0**-halvings, np.float32))
    else:
        coarse = np.linspace(1.0, 0.2 if bits > 4 else 0.05, 17 if bits > 4 else 20, dtype=np.float32)
        for shrink in coarse:
            consider(np.full(len(flat), shrink, np.float32))
        centre, step = best_shrink, float(coarse[0] - coarse[1])
        for offset in np.linspace(-0.8, 0.8, 9):
            consider(np.maximum(centre + np.float32(offset * step), np.float32(0.01)))
    codes = np.clip(np.rint(flat.astype(np.float64) / best.astype(np.float64)[:, None]), kind.qmin, kind.qmax)
    scales = np.broadcast_to(best.astype(np.float32), len(weight)).copy()
    return scales, codes.astype(np.int8).reshape(weight.shape)


def short_mantissa(scale: float, *, bits: int = 12) -> float:
    """Nearest float with `bits` bits of mantissa: products with codes and small integers then stay exact in
    float32.
    """
    mantissa, exponent = np.frexp(scale)
    return float(np.ldexp(np.rint(np.ldexp(mantissa, bits)), int(exponent) - bits))


def _span(histogram: Histogram, bounds: tuple[float, float | None] | None) -> tuple[float, float]:
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if bounds is not None:
        low = 0.0
    if high - low < 1e-12:
        high = low + 1e-6  # a tensor that is always zero still needs a positive scale
    return low, high


def _affine(low: float, high: float, levels: int, rule: ScaleRule) -> tuple[float, int]:
    if rule.zero_point == "middle":
        half = (levels + 1) // 2
        scale = max(-low / half, high / (levels - half))
        zero_point = half
    else:
        scale = (high - low) / levels
        zero_point = int(np.clip(np.rint(-low / scale), 0, levels))
    if rule.power_of_two:
        scale = float(rule.grid.snap(scale, up=True))
        zero_point = (
            zero_point if rule.zero_point == "middle" else int(np.clip(np.rint(-low / scale), 0, levels))
        )
    return float(np.float32(scale)), zero_point


def _finish(
    scale: float, zero_point: int, bits: int, storage: Storage, bounds: tuple[float, float | None] | None
) -> QuantParams:
    scale = float(np.float32(scale))
    low, high = STORAGE_RANGE[storage] if storage == "int16" else (0, 2**bits - 1)
    if bounds is not None:
        low = max(low, zero_point)
        if bounds[1] is not None:
            top = int(quantise(bounds[1], scale=scale, zero_point=zero_point, qmin=low, qmax=high))
            high = max(top, low + 1)
    return QuantParams(scale=scale, zero_point=zero_point, qmin=low, qmax=high, storage=storage)
