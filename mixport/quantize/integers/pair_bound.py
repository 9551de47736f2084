"""Weights whose neighbouring products could saturate in 16 bits, repaired: only the pairs that can, at the
scale that costs least.

A pair beyond the bound is moved to its nearest pair of codes on the bound: the excess is split between both.
A larger scale leaves fewer pairs beyond it, at the cost of coarser codes; the search takes the scale with the
least L_p error after the projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic.dtypes import IntType
from mixport.arithmetic.integer import Codes
from mixport.arithmetic.neighbour_pairs import (
    forms_pairs,
    from_kernel_order,
    in_pairs,
    kernel_order,
    pair_violations,
)
from mixport.arithmetic.scale_grid import ANY_SCALE, ScaleGrid
from mixport.quantize.scales.ranges import P

_COARSE = (1.0, 1.01, 1.02, 1.035, 1.05, 1.075, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.65, 1.8, 2.0)
"""Scale multipliers tried; at 2 no pair of 8-bit codes is beyond 128, the tightest bound of 8-bit inputs."""
_DOUBLINGS = (1.0, 2.0)
"""Those that keep a power of two one."""
_BLOCK = 1 << 18
"""Weights searched at once, so that the arrays stay in the processor's cache."""

Float = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PairBound:
    """What the pairs of one layer must keep.

    Attributes:
        largest_code: of the input, zero point included.
        limit: largest sum of two products; the smallest is -limit - 1.
    """

    largest_code: int
    limit: int

    @property
    def up(self) -> int:
        """Largest sum of the positive weights of a pair."""
        return self.limit // self.largest_code

    @property
    def down(self) -> int:
        """Largest sum of the negative weights' magnitudes."""
        return (self.limit + 1) // self.largest_code


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """Scales and codes that keep the bound.

    Attributes:
        scales: float32 [O], never below the scales given.
        codes: int8, shape of the weight.
        beyond: pairs that were beyond the bound.
        moved: pairs that were moved onto it; the others left it behind when their channel's scale was raised.
        channels: channels whose scale was raised.
    """

    scales: Float
    codes: NDArray[np.int8]
    beyond: int
    moved: int
    channels: int


def repair_pairs(
    weight: Float,
    scales: Float,
    codes: NDArray[np.int8],
    *,
    bits: int,
    bound: PairBound,
    groups: int = 1,
    grid: ScaleGrid = ANY_SCALE,
) -> Repaired:
    """Change what the bound needs and nothing else.

    Args:
        weight: float32 [O, ...].
        scales: float32 [O].
        codes: int8, shape of weight.
        bits: width of the codes.
        bound: to keep.
        groups: of the convolution; depthwise kernels form no pairs.
        grid: of the target's scales.
    """
    broken = np.zeros((len(codes), 1), np.bool_)
    if forms_pairs(codes.shape, groups=groups):
        broken = pair_violations(codes, largest_code=bound.largest_code, limit=bound.limit)
    offending = broken.any(1)
    if not offending.any():
        return Repaired(scales=scales, codes=codes, beyond=0, moved=0, channels=0)
    if grid.per_tensor:
        offending = np.ones_like(offending)  # what one channel needs, all have
    kind = IntType(bits=bits, signed=True, narrow=bits == 8)
    rows = kernel_order(weight[offending]).astype(np.float32)
    raised = scales[offending].astype(np.float32)
    step = len(rows) if grid.per_tensor else max(1, _BLOCK // rows.shape[1])
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        raised[block] = _best_scales(rows[block], raised[block], kind=kind, bound=bound, grid=grid)
    exact = rows.astype(np.float64) / raised.astype(np.float64)[:, None]
    projected, moved = project_pairs(exact, kind=kind, bound=bound)
    new_scales, new_codes = scales.copy(), codes.copy()
    new_scales[offending] = raised
    shape = (len(rows), *codes.shape[1:])
    new_codes[offending] = from_kernel_order(projected.astype(np.int8), shape=shape)
    raised_channels = int((new_scales > scales).sum())
    return Repaired(
        scales=new_scales, codes=new_codes, beyond=int(broken.sum()), moved=moved, channels=raised_channels
    )


def project_pairs(values: NDArray[np.floating], *, kind: IntType, bound: PairBound) -> tuple[Codes, int]:
    """Nearest codes that keep the bound, pair by pair.

    Where rounding each value by itself leaves the bound, the nearest pair of codes lies on it (the error is
    convex and the same function of both values), with the excess split evenly.

    Args:
        values: weights in units of their scale, [O, K] in kernel order.
        kind: integer type of the codes.
        bound: to keep.

    Returns:
        codes [O, K] in values' type, and how many pairs were moved.
    """
    pairs = in_pairs(values)
    codes = np.clip(np.rint(pairs), max(kind.qmin, -bound.down), min(kind.qmax, bound.up))
    beyond = np.flatnonzero(
        (np.maximum(codes, 0).sum(-1) > bound.up) | (np.minimum(codes, 0).sum(-1) < -bound.down)
    )
    flat, wanted = codes.reshape(-1, 2), pairs.reshape(-1, 2)[beyond]
    # Only two weights of one sign get here: opposite ones were clipped each by itself.
    sign = np.sign(wanted.sum(-1))
    limit = np.where(sign > 0, bound.up, bound.down).astype(values.dtype)
    widest = np.where(sign > 0, kind.qmax, -kind.qmin).astype(values.dtype)
    share = np.rint((sign * (wanted[:, 0] - wanted[:, 1]) + limit) / 2)
    share = np.clip(share, np.maximum(limit - widest, 0), np.minimum(limit, widest))
    flat[beyond] = np.stack([sign * share, sign * (limit - share)], axis=-1)
    return codes.reshape(len(values), -1)[:, : values.shape[1]], len(beyond)


def _best_scales(rows: Float, scales: Float, *, kind: IntType, bound: PairBound, grid: ScaleGrid) -> Float:
    """Per row, the scale at or above the given one with the least L_p error after projection."""
    best, best_multiplier = scales, np.ones(len(rows), np.float32)
    best_error = np.full(len(rows), np.inf)

    def consider(multiplier: Float) -> None:
        nonlocal best, best_multiplier, best_error
        scale = (scales * multiplier).astype(np.float32)
        codes, _ = project_pairs(rows / scale[:, None], kind=kind, bound=bound)
        difference = np.abs(codes * scale[:, None] - rows)
        error = np.power(difference, np.float32(P)).sum(1, dtype=np.float64)
        if grid.per_tensor:
            error = np.full_like(error, error.sum())
        better = error < best_error
        best, best_multiplier = np.where(better, scale, best), np.where(better, multiplier, best_multiplier)
        best_error = np.where(better, error, best_error)

    for multiplier in _DOUBLINGS if grid.power_of_two else _COARSE:
        consider(np.full(len(rows), multiplier, np.float32))
    if grid.power_of_two:
        return best.astype(np.float32)
    centre = best_multiplier
    for offset in (-0.03, -0.02, -0.01, -0.005, 0.005, 0.01, 0.02, 0.03):
        consider(np.maximum(centre * np.float32(1 + offset), np.float32(1.0)))
    return best.astype(np.float32)
