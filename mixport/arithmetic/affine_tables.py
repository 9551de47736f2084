"""Tables of codes that are one requantisation: the identity between DequantizeLinear and QuantizeLinear, with
scales of their own.

    table(c) = saturate(round((c - z) k) + t)

A hard sigmoid whose input never comes near one of its bends is such a table; so is any other function that is
straight between the codes at which its result saturates. ONNX Runtime makes DequantizeLinear, LeakyRelu with
alpha 1, QuantizeLinear a byte table (QLinearLeakyRelu; 1.31, 1.32, x64), in a quarter of the time of one read
by GatherElements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic.float_functions import FLOAT_FUNCTIONS, proved_codes
from mixport.arithmetic.quant_params import QuantParams

FORM = "LeakyRelu"
"""Key of the identity in FLOAT_FUNCTIONS."""

_SLOPES = 9
"""Slopes tried, evenly over those that may give the table."""


@dataclass(frozen=True, kw_only=True)
class TableRequantisation:
    """Both quantisers of an affine table.

    Attributes:
        source: parameters that its uint8 codes are dequantised with.
        target: parameters that the result is quantised with.
    """

    source: QuantParams
    target: QuantParams


def find_requantisation(table: NDArray[Any]) -> TableRequantisation | None:
    """Quantisers for which every runtime is proved to give the table; None where there are none, or the table
    does not rise.

    Args:
        table: uint8 [256].
    """
    entries = np.asarray(table, np.int64)
    bounds = _slopes(entries)
    if bounds is None:
        return None
    codes = np.arange(256, dtype=np.float64)
    # From the middle outwards: furthest from where some entry rounds to another code.
    low, high = bounds
    for step in sorted(range(1, _SLOPES + 1), key=lambda one: abs(2 * one - _SLOPES - 1)):
        slope = float(np.float32(low + (high - low) * step / (_SLOPES + 1)))
        first, last = _offsets(entries, codes * slope)
        for zero_point in _centred(slope, first, last):
            shift = round((first + last) / 2 + zero_point * slope)
            if not 0 <= shift <= 255:
                continue
            found = TableRequantisation(source=_uint8(slope, zero_point), target=_uint8(1.0, shift))
            given = proved_codes(FLOAT_FUNCTIONS[FORM], found.source, found.target)
            if given is not None and np.array_equal(given, entries):
                return found
    return None


def is_straight(table: NDArray[Any]) -> bool:
    """True where some line comes within half a code of each entry, those that saturate aside.

    Args:
        table: uint8 [256].
    """
    return _slopes(np.asarray(table, np.int64)) is not None


def _uint8(scale: float, zero_point: int) -> QuantParams:
    return QuantParams(scale=scale, zero_point=zero_point, qmin=0, qmax=255, storage="uint8")


def _slopes(entries: NDArray[np.int64]) -> tuple[float, float] | None:
    """Between which the slope of a line through all steps of a rising table lies; None where there is no such
    line.
    """
    if entries[0] == entries[-1] or np.any(np.diff(entries) < 0):
        return None
    # Entry e is reached at its first code: the line is above e - 1/2 there, and below it one code earlier.
    steps = np.flatnonzero(np.diff(entries)) + 1
    # Both ends are bounds as well, unless the result saturates there.
    above = steps if entries[0] == 0 else np.concatenate([[0], steps])
    below = steps - 1 if entries[-1] == 255 else np.concatenate([steps - 1, [255]])
    low, high = 0.0, np.inf
    for at in above:
        rise, run = entries[below] + 0.5 - (entries[at] - 0.5), below - at
        high = min(high, float(np.min(rise[run > 0] / run[run > 0], initial=np.inf)))
        low = max(low, float(np.max(rise[run < 0] / run[run < 0], initial=0.0)))
    if not low < high:
        return None
    return (low, high) if np.isfinite(high) else (low, low + 1.0)


def _offsets(entries: NDArray[np.int64], line: NDArray[np.float64]) -> tuple[float, float]:
    """Smallest and largest b for which line + b rounds to the entries; 0 and 255 saturate, and bound on one
    side only.
    """
    return (
        float(np.max(np.where(entries > 0, entries - 0.5 - line, -np.inf))),
        float(np.min(np.where(entries < 255, entries + 0.5 - line, np.inf))),
    )


def _centred(slope: float, first: float, last: float) -> list[int]:
    """Zero points of the input for which an integer shift puts the line between both offsets, best centred
    first.
    """
    if not first < last:
        return []
    middle = (
        (first + last) / 2
        if np.isfinite(first) and np.isfinite(last)
        else (first + 0.25 if np.isfinite(first) else last - 0.25)
    )
    off = middle + np.arange(256) * slope
    distance = np.abs(off - np.rint(off))
    fits = np.flatnonzero(distance < (last - first) / 2)
    return [int(one) for one in fits[np.argsort(distance[fits], kind="stable")][:8]]
