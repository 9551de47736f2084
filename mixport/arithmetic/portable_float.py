"""Softmax and LayerNorm from operations whose result IEEE-754 fixes, in NumPy: the definition that file and
simulation are tested against.

Library kernels of both differ between machines (exponentials, order of float sums, fused multiply-add). Here
every step is one correctly rounded operation, or a sum of integers that the float type holds exactly, so that
its order does not matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float32]

REACH = 16.0
"""exp(-16) times 2^16 rounds to 0: scores further below the largest one weigh nothing."""

SQUARINGS = 6
"""exp(-d) is computed as p(d / 2^6)^(2^6)."""

FLOAT32_INTEGERS, FLOAT64_INTEGERS = 1 << 24, 1 << 53
"""Up to these magnitudes a float type holds every integer."""


def softmax_bits(length: int) -> int:
    """Bits of the softmax numerators: at most 16, and `length` of them add up to at most 2^24.

    Raises:
        ValueError: the row is longer than 2^16, which would leave the numerators fewer than 8 bits.
    """
    bits = min(16, 24 - max(0, length - 1).bit_length())
    if bits < 8:
        raise ValueError(f"a softmax over {length} scores, allowed {1 << 16} or fewer")
    return bits


def softmax(x: ArrayLike, *, bits: int) -> Float:
    """Softmax over the last axis.

    exp(-d) for d = max - x is (1 - t + t^2 / 2)^64 with t = min(d, 16) / 64, rounded to an integer of `bits`
    bits (16 at most: uint16); the sum of the integers is exact in float32 while the row holds at most 2^(24 -
    bits) of them. The error of a probability stays below 1e-4 of the largest one.

    Args:
        x: float32 scores.
        bits: of the numerators, see `softmax_bits`.

    Returns:
        float32 of x's shape.
    """
    scores = np.asarray(x, np.float32)
    t = np.minimum(scores.max(-1, keepdims=True) - scores, np.float32(REACH)) * np.float32(2.0**-SQUARINGS)
    power = (t * np.float32(0.5) - np.float32(1)) * t + np.float32(1)
    for _ in range(SQUARINGS):
        power = power * power
    numerators = np.minimum(np.rint(power / np.float32(2.0**-bits)), np.float32(65535))
    return numerators / numerators.sum(-1, keepdims=True, dtype=np.float32)


def layer_norm(
    codes: NDArray[Any], *, weight: ArrayLike, bias: ArrayLike, epsilon: float, scale: float
) -> Float:
    """LayerNorm over the last axis of integer codes; their zero point cancels.

    With D codes c a row, S = sum(c) and Q = sum(c^2) are exact; then one rounding a step: y = (c - m) *
    float32(D / sqrt(D Q - S^2 + D^2 epsilon / scale^2)) * weight + bias. The mean m is float32(S / D) for
    8-bit codes. For wider ones it is the nearest integer to float32(S) / D: half a step of 16-bit codes, as
    every code is off by, is far below a step of the 8-bit result, and an integer is what DequantizeLinear
    subtracts. A bias of zeros is not added, and a weight of ones, whose products change nothing, need not be
    multiplied by.

    Args:
        codes: integers of at most 16 bits.
        weight: float32 [D].
        bias: float32 [D].
        epsilon: of the float model, in units of its variance.
        scale: of the codes, float32.

    Returns:
        float32 of the codes' shape.
    """
    c = codes.astype(np.float64)
    length = np.float64(codes.shape[-1])
    total = c.sum(-1, keepdims=True)
    squares = (c * c).sum(-1, keepdims=True)
    spread = squares * length - total * total + variance_offset(codes.shape[-1], epsilon=epsilon, scale=scale)
    if has_integer_mean(codes.dtype.name):
        mean = np.rint(total.astype(np.float32) / np.float32(length))
    else:
        mean = (total / length).astype(np.float32)
    normal = (codes.astype(np.float32) - mean) * (length / np.sqrt(spread)).astype(np.float32)
    scaled = normal * np.asarray(weight, np.float32)
    return scaled + np.asarray(bias, np.float32) if np.any(bias) else scaled


def has_integer_mean(storage: str) -> bool:
    """True for codes of more than 8 bits: LayerNorm takes their mean as an integer."""
    return np.dtype(storage).itemsize > 1


def sums_fit_float32(length: int, *, storage: str) -> bool:
    """True where float32 holds every sum of `length` squares of codes, whatever they are: 258 codes of 8
    bits, none of 16.
    """
    info = np.iinfo(storage)
    return length * max(abs(int(info.min)), int(info.max)) ** 2 <= FLOAT32_INTEGERS


LEAST_OFFSET = 2.0**-40
"""A row of equal codes must not divide 0 by 0: runtimes give NaN different 16-bit codes. Next to any other
row, whose variance is at least 1 in these units, it does not show in float32.
"""


def variance_offset(length: int, *, epsilon: float, scale: float) -> float:
    """D^2 epsilon / scale^2 in float64: epsilon in the units of D^2 times the variance of the codes; at least
    LEAST_OFFSET.
    """
    step = float(np.float32(scale))
    return max(length * length * float(epsilon) / (step * step), LEAST_OFFSET)
