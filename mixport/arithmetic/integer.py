"""The arithmetic of quantised inference, in plain NumPy: the one definition that every other path is tested
against.

Each function states what ONNX Runtime's *fused* integer kernels compute (opset 21 QDQ graphs, default
optimisation level), as measured on x64, AVX2, WASM and arm64. Codes are integer arrays; accumulators are
int64 arrays whose values fit int32; scales are float32. Rounding is half to even everywhere. Float steps are
single IEEE-754 float32 operations in the order written, because that order is part of the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Codes = NDArray[Any]
"""Integer codes of any storage type."""

Accumulator = NDArray[np.int64]
"""Exact sums; every value must fit int32, which `check_accumulator` proves."""

Float = NDArray[np.float32]

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def quantise(x: ArrayLike, *, scale: ArrayLike, zero_point: int, qmin: int, qmax: int) -> Accumulator:
    """Round floats to codes: clamp(rint(x / scale) + zero_point, qmin, qmax).

    ONNX QuantizeLinear, opset 21. Divides; multiplying by a reciprocal changes near ties.

    Args:
        x: float32 values, any shape.
        scale: float32, positive, broadcastable to x.
        zero_point: code of the real value 0.
        qmin: smallest code, saturating.
        qmax: largest code, saturating.

    Returns:
        int64 codes with the shape of x. NaN becomes qmin.
    """
    quotient = np.asarray(x, np.float32) / np.asarray(scale, np.float32)
    return _round_and_saturate(quotient, zero_point=zero_point, qmin=qmin, qmax=qmax)


def dequantise(codes: ArrayLike, *, scale: ArrayLike, zero_point: ArrayLike = 0) -> Float:
    """Real values of codes: float32(code - zero_point) * scale. ONNX DequantizeLinear, opset 21."""
    centred = np.asarray(codes).astype(np.int64) - np.asarray(zero_point).astype(np.int64)
    return centred.astype(np.float32) * np.asarray(scale, np.float32)


def requantise(
    acc: Accumulator, *, multiplier: ArrayLike, zero_point: int, qmin: int, qmax: int
) -> Accumulator:
    """Accumulators to codes: clamp(rint(float32(acc) * multiplier) + zero_point, qmin, qmax).

    The output stage of QLinearConv, QLinearMatMul, QGemm and QLinearGlobalAveragePool.

    Args:
        acc: exact sums, any shape. float32(acc) rounds half to even above 2^24, as the kernels do.
        multiplier: float32, broadcastable to acc: see `conv_multiplier` and `average_multiplier`.
        zero_point: added after rounding.
        qmin: smallest code.
        qmax: largest code.
    """
    product = acc.astype(np.float32) * np.asarray(multiplier, np.float32)
    return _round_and_saturate(product, zero_point=zero_point, qmin=qmin, qmax=qmax)


def conv_multiplier(x_scale: ArrayLike, w_scale: ArrayLike, y_scale: ArrayLike) -> Float:
    """float32(x_scale * w_scale) / y_scale, in this order, each step rounded to float32 (QLinearConv, QGemm,
    QLinearMatMul).
    """
    product = np.asarray(x_scale, np.float32) * np.asarray(w_scale, np.float32)
    return np.asarray(product / np.asarray(y_scale, np.float32), np.float32)


def average_multiplier(x_scale: ArrayLike, y_scale: ArrayLike, count: int) -> Float:
    """x_scale / float32(y_scale * count), each step rounded to float32 (QLinearGlobalAveragePool)."""
    divisor = np.asarray(y_scale, np.float32) * np.float32(count)
    return np.asarray(np.asarray(x_scale, np.float32) / divisor, np.float32)


def multiply(
    a: Codes,
    b: Codes,
    *,
    a_zero_point: int,
    b_zero_point: int,
    multiplier: ArrayLike,
    zero_point: int,
    qmin: int,
    qmax: int,
) -> Accumulator:
    """Elementwise product of two code tensors (QLinearMul): rint(float32(a' * b') * multiplier +
    float32(zero_point)), saturated.

    Unlike `requantise` the zero point is added *before* rounding: with an odd zero point a tie goes the other
    way.
    """
    product = (a.astype(np.int64) - a_zero_point) * (b.astype(np.int64) - b_zero_point)
    shifted = product.astype(np.float32) * np.asarray(multiplier, np.float32) + np.float32(zero_point)
    return _round_and_saturate(shifted, zero_point=0, qmin=qmin, qmax=qmax)


def add(
    a: Codes,
    b: Codes,
    *,
    a_zero_point: int,
    b_zero_point: int,
    a_ratio: int,
    b_ratio: int,
    zero_point: int,
    qmin: int,
    qmax: int,
) -> Accumulator:
    """Elementwise sum of two code tensors whose scales are integer multiples of the output scale (portable
    QLinearAdd).

    a_ratio * (a - a_zero_point) + b_ratio * (b - b_zero_point) + zero_point, saturated: integers only,
    nothing to round.
    """
    total = a_ratio * (a.astype(np.int64) - a_zero_point) + b_ratio * (b.astype(np.int64) - b_zero_point)
    return np.clip(total + zero_point, qmin, qmax)


def add_ratio(input_scale: float, output_scale: float) -> int | None:
    """The integer n with input_scale == float32(n) * output_scale in float32 exactly, and also input_scale /
    output_scale == n; else None.

    Both directions must hold, because one runtime divides the scales and another multiplies the codes.
    """
    s_in, s_out = np.float32(input_scale), np.float32(output_scale)
    ratio = s_in / s_out
    n = int(np.rint(ratio))
    exact = n >= 1 and np.float32(n) == ratio and np.float64(n) * np.float64(s_out) == np.float64(s_in)
    return n if exact else None


def lookup(codes: Codes, *, table: Codes) -> Codes:
    """table[codes]: a function of one 8-bit code (ONNX GatherElements on flat codes). table has one entry per
    code of an unsigned input.
    """
    return table[codes.astype(np.int64)]


def conv_accumulate(
    x: Codes,
    w: Codes,
    *,
    x_zero_point: int,
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilations: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Accumulator:
    """Exact sums of a 2-D convolution over integer codes.

    Args:
        x: codes [N, C, H, W].
        w: centred weight codes [O, C / groups, kH, kW] (symmetric: zero point 0).
        x_zero_point: code of real 0, which is also what padding holds.
        strides: (rows, columns).
        pads: (top, left, bottom, right), as in ONNX.
        dilations: (rows, columns).
        groups: convolution groups.

    Returns:
        int64 [N, O, H', W'].
    """
    top, left, bottom, right = pads
    # float64 holds every partial sum exactly: |sum| <= 2^16 * 2^16 * K stays far below 2^53.
    centred = x.astype(np.float64) - x_zero_point
    padded = np.pad(centred, ((0, 0), (0, 0), (top, bottom), (left, right)))
    out_channels, group_channels, k_h, k_w = w.shape
    span = (dilations[0] * (k_h - 1) + 1, dilations[1] * (k_w - 1) + 1)
    rows = (padded.shape[2] - span[0]) // strides[0] + 1
    columns = (padded.shape[3] - span[1]) // strides[1] + 1
    weights = w.astype(np.float64).reshape(groups, out_channels // groups, group_channels, k_h, k_w)
    acc = np.zeros((x.shape[0], groups, out_channels // groups, rows * columns))
    for i in range(k_h):
        for j in range(k_w):
            r, c = i * dilations[0], j * dilations[1]
            tap = padded[
                :,
                :,
                r : r + strides[0] * (rows - 1) + 1 : strides[0],
                c : c + strides[1] * (columns - 1) + 1 : strides[1],
            ]
            tap = tap.reshape(x.shape[0], groups, group_channels, rows * columns)
            if group_channels == 1:
                acc += weights[None, :, :, 0, i, j, None] * tap
            else:
                acc += weights[None, :, :, :, i, j] @ tap
    return acc.reshape(x.shape[0], out_channels, rows, columns).astype(np.int64)


def matmul_accumulate(a: Codes, b: Codes, *, a_zero_point: int, b_zero_point: int = 0) -> Accumulator:
    """Exact sums of a matrix product over codes, [..., M, K] x [..., K, N] with NumPy broadcasting."""
    left = a.astype(np.float64) - a_zero_point
    right = b.astype(np.float64) - b_zero_point
    return np.matmul(left, right).astype(np.int64)


def spatial_sum(x: Codes, *, x_zero_point: int) -> Accumulator:
    """Sum over the two last axes of [N, C, H, W], centred, keeping them as size 1
    (QLinearGlobalAveragePool).
    """
    return (x.astype(np.int64) - x_zero_point).sum(axis=(-2, -1), keepdims=True)


def check_accumulator(acc: Accumulator) -> bool:
    """True when every sum fits the kernels' int32."""
    return bool(acc.size == 0 or (acc.min() >= INT32_MIN and acc.max() <= INT32_MAX))


def quantise_bias(
    bias: ArrayLike, *, x_scale: ArrayLike, w_scale: ArrayLike
) -> tuple[NDArray[np.int32], Float]:
    """int32 bias codes and their scale, exactly float32(x_scale) * float32(w_scale).

    The quotient is taken in float64, so that the code is the nearest one.

    Raises:
        OverflowError: a code does not fit int32.
    """
    scale = np.asarray(x_scale, np.float32) * np.asarray(w_scale, np.float32)
    codes = np.rint(np.asarray(bias, np.float64) / scale.astype(np.float64))
    if codes.size and (codes.min() < INT32_MIN or codes.max() > INT32_MAX):
        raise OverflowError(f"bias code {codes[np.abs(codes).argmax()]:.0f} does not fit int32")
    return codes.astype(np.int32), np.asarray(scale, np.float32)


def _round_and_saturate(x: Float, *, zero_point: int, qmin: int, qmax: int) -> Accumulator:
    # The clamp comes first in float, as in MLAS, so that infinities saturate; int64 keeps the addition exact.
    low, high = float(qmin - zero_point), float(qmax - zero_point)
    rounded = np.rint(np.clip(np.nan_to_num(x, nan=low, posinf=high, neginf=low), low, high))
    return rounded.astype(np.int64) + zero_point
