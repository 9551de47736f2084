"""Products of two code tensors: do all machines requantise them to the same codes?

ONNX Runtime's QLinearMul (1.31, 1.32) computes float32(a' b') * (a_scale b_scale / y_scale) + zero_point on
x64 and arm64, where a machine may fuse the last two operations; under WASM (onnxruntime-web 1.30) it computes
(a_scale a') (b_scale b') / y_scale + zero_point. Near a tie they differ. Two 8-bit tensors have at most
65,536 products: each is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mixport.arithmetic.quant_params import QuantParams

_HALF_ULP = 2.0**-24
"""Largest relative error of one correctly rounded float32 operation."""

_FURTHEST = 4096
"""Units in the last place that a scale may move: 0.05 %, an eighth of the step of the largest 8-bit code."""


def is_product_proved(a: QuantParams, b: QuantParams, y: QuantParams) -> bool:
    """True where every product of two codes lies further from the boundary of two codes than the roundings of
    any order of operations.

    Args:
        a: of the first operand; codes are [qmin, qmax].
        b: of the second one.
        y: of the result.
    """
    left, right = (np.arange(one.qmin, one.qmax + 1, dtype=np.int64) - one.zero_point for one in (a, b))
    products = np.unique(left[:, None] * right[None, :]).astype(
        np.float64
    )  # at most 2^16: exact in float32, too
    scaled = products * (float(np.float32(a.scale)) * float(np.float32(b.scale)) / float(np.float32(y.scale)))
    shifted = scaled + y.zero_point
    # Three multiplications and a division at most, then the addition; the last factor is for products of
    # these errors.
    reach = _HALF_ULP * (4.0 * np.abs(scaled) + np.abs(shifted)) * (1.0 + 2.0**-20)
    low, high = (np.clip(np.rint(edge), y.qmin, y.qmax) for edge in (shifted - reach, shifted + reach))
    return bool(np.array_equal(low, high))


def moved_scales(scale: float) -> Iterator[float]:
    """A float32 scale, then its neighbours, nearest first: 0, 1, -1, 2, -2, 3 ... units in the last place,
    further out in growing steps.
    """
    # The bits of positive floats are ordered as their values.
    bits = int(np.asarray(scale, np.float32).view(np.int32))
    yield scale
    distance = 1
    while distance <= _FURTHEST:
        for ulps in (distance, -distance):
            yield float(np.asarray(bits + ulps, np.int32).view(np.float32))
        distance += 1 + distance // 8
