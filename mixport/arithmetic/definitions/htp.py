"""Qualcomm's HTP as its simulator computes it: onnxruntime-qnn 2.7.0 on onnxruntime 1.31.1, x86-64 Linux,
measured in November 2026. Nothing was compared with silicon.

The simulator computes one set of codes for htp_arch 68 and 69, another for 73, 75, 79 and 81. All factors are
fixed-point: M = m * 2^-n with 1 <= m < 2, and m is kept to some fraction bits. floor(v + 1/2) rounds
throughout.

Predicted so: every code of ResNet-20 on 16 images on both (4,933,792 each), every unit of the biases of 6,144
channels on 73, and the zero points of 15,764 channels on 68 that were drawn next to a tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic.definitions.definition import Layer, Operand, Output
from mixport.arithmetic.integer import Accumulator

_INT16 = 1 << 15
_MOST_SHIFT = 15
_NEAR_POWER = 1.0 + 2.0**-12
"""A sum of ratios this little below a power of two counts as one."""


@dataclass(frozen=True)
class Htp:
    """A `Definition`.

    Attributes:
        arch: htp_arch: 68 stands for 69 too, 73 for 75, 79 and 81.
    """

    arch: Literal[68, 73]

    @property
    def name(self) -> str:
        """See Definition."""
        return f"htp{self.arch}"

    @property
    def float_products(self) -> bool:
        """No: a product with a float output stays on the CPU."""
        return False

    def refused_add(self, a: Operand, b: Operand, output: Output) -> str:
        """Every sum is defined."""
        return ""

    def layer(self, sums: Accumulator, layer: Layer, output: Output) -> Accumulator:
        """Conv, Gemm, MatMul with constant weights, depthwise.

        Arch 68: z = round(zero point / M) joins the sum; t = floor((sum + z) / 2^(n-4));
        code = floor(t * m_10 / 16 + 1/2). Arch 73: t = floor(sum / 2^(n-4));
        code = floor((t + 1/2) * m_11 / 16 + 1/2) + zero point, with biases that are cut towards 0
        as they are carried. A depthwise convolution with a stride is more exact on both:
        floor((sum + z) * m_14 / 2^n + 1/2).
        """
        rank = sums.ndim
        m, n = _split(_product(layer.x_scale, layer.w_scale, output.scale))
        shift = layer.along(n, rank=rank)

        def mantissa(bits: int) -> NDArray[np.int64]:
            return layer.along(_rounded(m * 2.0**bits), rank=rank)

        zero = output.zero_point - output.lowest  # codes are unsigned inside
        if layer.strided_depthwise:
            z = layer.along(_zero_in_sums(layer, output, zero), rank=rank)
            found = _shifted((sums + z) * mantissa(14) + _half(shift + 14), shift + 14)
        elif self.arch == 68:
            z = layer.along(_zero_in_sums(layer, output, zero), rank=rank)
            found = (_shifted(sums + z, shift - 4) * mantissa(10) + (1 << 13)) >> 14
        else:
            if layer.bias is not None:
                cut = np.trunc(_carried_bias(layer)).astype(np.int64)
                sums = sums + layer.along(cut - layer.bias, rank=rank)
            half_steps = 2 * _shifted(sums, shift - 4) + 1
            found = ((half_steps * mantissa(11) + (1 << 15)) >> 16) + zero
        return np.clip(found + output.lowest, output.low, output.high)

    def average(self, sums: Accumulator, *, count: int, x_scale: np.float32, output: Output) -> Accumulator:
        """GlobalAveragePool: floor(sum * m_14 * 2^-n + 1/2) + zero point, M = x_scale / (y_scale * count);
        measured from 4 x 4 to 14 x 14.
        """
        m, n = _split(np.float64(x_scale) / (np.float64(output.scale) * count))
        shift = n + 14
        found = _shifted(sums * _rounded(m * 2.0**14) + _half(shift), shift)
        return np.clip(found + output.zero_point, output.low, output.high)

    def add(self, a: Operand, b: Operand, output: Output) -> Accumulator:
        """(ka * a + kb * b + off + 2^(s-1)) >> s on codes as they are: k = round(ratio * 2^s), and off, which
        takes the zero points, is a multiple of 256.
        """
        ratio_a, ratio_b = (np.float64(one.scale) / np.float64(output.scale) for one in (a, b))
        whole = (ratio_a + ratio_b) * _NEAR_POWER
        s = min(_MOST_SHIFT, 13 - int(np.floor(np.log2(whole))))
        if s < 1:
            raise ValueError(f"scales {a.scale!s} and {b.scale!s} are too large for {output.scale!s}")
        ka, kb = int(_rounded(ratio_a * 2.0**s)), int(_rounded(ratio_b * 2.0**s))
        zero = output.zero_point - output.lowest
        zeros = zero * 2**s - ka * (a.zero_point - a.lowest) - kb * (b.zero_point - b.lowest)
        off = 256 * ((zeros + 128) // 256)
        total = ka * (a.codes.astype(np.int64) - a.lowest) + kb * (b.codes.astype(np.int64) - b.lowest)
        found = (total + off + (1 << (s - 1))) >> s
        return np.clip(found + output.lowest, output.low, output.high)

    def multiply(self, a: Operand, b: Operand, output: Output) -> Accumulator:
        """Product of two uint8 tensors: (K * (product - 256 k) + o * 2^15 + 2^(s-1)) >> s, where 256 k takes
        the middle of the products and o, an int16, puts it back with the zero point.
        """
        ratio = np.float64(a.scale) * np.float64(b.scale) / np.float64(output.scale)
        _, n = _split(ratio)
        za, zb = a.zero_point - a.lowest, b.zero_point - b.lowest
        k = int(np.floor((2 * za - 255) * (2 * zb - 255) / 512 + 0.5))
        s = min(14 + int(n), 22)
        while True:
            factor = int(_rounded(ratio * 2.0**s))
            zero = (output.zero_point - output.lowest) * 2**s
            o = int(np.floor((zero + factor * 256 * k) / 2**15 + 0.5))
            if -_INT16 <= o < _INT16:
                break
            s -= 1
        product = (a.codes.astype(np.int64) - a.zero_point) * (b.codes.astype(np.int64) - b.zero_point)
        rest = factor * (product - 256 * k) + o * _INT16
        found = _shifted(rest + _half(np.int64(s)), np.int64(s))
        return np.clip(found + output.lowest, output.low, output.high)

    def rescale(self, x: Operand, output: Output) -> Accumulator:
        """Rounded twice: t = floor(x * R_14 * 2^f + 1/2), then floor(t / 2^f + 1/2), with f = 6 for ratios
        below 2 and one less for every doubling, never below 0.
        """
        ratio = np.float64(x.scale) / np.float64(output.scale)
        m, n = _split(ratio)
        f = np.int64(max(0, 6 - max(0, int(np.floor(np.log2(ratio))))))
        shift = n + 14 - f
        t = _shifted((x.codes.astype(np.int64) - x.zero_point) * _rounded(m * 2.0**14) + _half(shift), shift)
        found = _shifted(t + _half(f), f)
        return np.clip(found + output.zero_point, output.low, output.high)


def _product(x_scale: np.float32, w_scale: NDArray[np.float32], y_scale: np.float32) -> NDArray[np.float64]:
    return np.float64(x_scale) * w_scale.astype(np.float64) / np.float64(y_scale)


def _split(factor: Any) -> tuple[Any, Any]:
    """m and n of factor = m * 2^-n with 1 <= m < 2."""
    m, exponent = np.frexp(np.asarray(factor, np.float64))
    return m * 2.0, 1 - np.asarray(exponent, np.int64)


def _rounded(value: Any) -> Any:
    return np.floor(np.asarray(value, np.float64) + 0.5).astype(np.int64)


def _shifted(value: Any, shift: Any) -> Any:
    """floor(value / 2^shift), also for negative shifts."""
    down, up = np.maximum(shift, 0), np.maximum(-shift, 0)
    return (value >> down) << up


def _half(shift: Any) -> Any:
    """2^(shift-1), what a half is before a shift; 0 where nothing is shifted out."""
    return np.where(shift > 0, np.left_shift(np.int64(1), np.maximum(shift - 1, 0)), np.int64(0))


def _carried_bias(layer: Layer) -> NDArray[np.float32]:
    """Bias codes as HTP carries them: at the scale of the layer's largest weight scale they are divided by
    the largest of them, rounded to 28 bits, and divided by the scale again, all in float32. Where the
    largest is no power of two, some come out next to their integer.
    """
    assert layer.bias is not None
    one = np.float32
    unit = one(one(layer.x_scale) * one(layer.w_scale.max()))
    real = (layer.bias.astype(np.float32) * unit).astype(np.float32)
    largest = one(np.abs(real).max(initial=0.0))
    if largest == 0.0:
        return real
    step = one(largest / one(2.0**28))
    steps = np.rint((real * one(one(1.0) / step)).astype(np.float32))
    return ((steps * step).astype(np.float32) / unit).astype(np.float32)


def _zero_in_sums(layer: Layer, output: Output, zero: int) -> NDArray[np.int64]:
    """The zero point in units of the sums, by the simulator's own float32 chain: one factor for the layer, at
    its largest weight scale, times each channel's share of it. With a bias the two are rounded together, ties
    away from 0.
    """
    one = np.float32
    largest = one(layer.w_scale.max())
    whole = one(one(one(layer.x_scale) * largest) / one(output.scale))
    z = one(zero) / (whole * (layer.w_scale / largest).astype(np.float32)).astype(np.float32)
    if layer.bias is None:
        return _rounded(z)
    total = (z + _carried_bias(layer)).astype(np.float32).astype(np.float64)
    return (np.sign(total) * np.floor(np.abs(total) + 0.5)).astype(np.int64) - layer.bias
