"""Products of two code tensors: do all machines requantise them to the same codes?

QLinearMul computes float32(a' b') * multiplier + zero_point, then rounds. A machine may fuse the multiplication with the addition, and
round once in place of twice. Two 8-bit tensors have at most 65,536 products: each is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mixport import integer
from mixport.quantspec import QuantParams

_HALF_ULP = 2.0**-24
"""Largest relative error of one correctly rounded float32 operation."""

_FURTHEST = 4096
"""Units in the last place that a scale may move: 0.05 %, an eighth of the step of the largest 8-bit code."""


def is_product_proved(a: QuantParams, b: QuantParams, y: QuantParams) -> bool:
    """True where every product of two codes lies further from the boundary of two codes than both roundings together.

    Args:
        a: of the first operand; codes are [qmin, qmax].
        b: of the second one.
        y: of the result.
    """
    left, right = (np.arange(one.qmin, one.qmax + 1, dtype=np.int64) - one.zero_point for one in (a, b))
    products = np.unique(left[:, None] * right[None, :]).astype(np.float64)  # at most 2^16: exact in float32, too
    scaled = products * float(integer.conv_multiplier(a.scale, b.scale, y.scale))
    shifted = scaled + y.zero_point
    reach = _HALF_ULP * (np.abs(scaled) * (1.0 + _HALF_ULP) + np.abs(shifted)) * (1.0 + 2.0**-20)
    low, high = (np.clip(np.rint(edge), y.qmin, y.qmax) for edge in (shifted - reach, shifted + reach))
    return bool(np.array_equal(low, high))


def moved_scales(scale: float) -> Iterator[float]:
    """A float32 scale, then its neighbours, nearest first: 0, 1, -1, 2, -2, 3 ... units in the last place, further out in growing steps."""
    # The bits of positive floats are ordered as their values.
    bits = int(np.asarray(scale, np.float32).view(np.int32))
    yield scale
    distance = 1
    while distance <= _FURTHEST:
        for ulps in (distance, -distance):
            yield float(np.asarray(bits + ulps, np.int32).view(np.float32))
        distance += 1 + distance // 8
