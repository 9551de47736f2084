"""Scales move as little as possible, and then every reachable sum gets its exact code."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from mixport.arithmetic import integer
from mixport.arithmetic.quant_params import QuantParams
from mixport.quantize.integers.exact_scales import Layer, exact_scales


def layer(
    seed: int, *, bits: int, high: int, channels: int = 6, products: int = 144
) -> tuple[Layer, np.ndarray]:
    rng = np.random.default_rng(seed)
    limit = 2 ** (bits - 1) - 1
    codes = rng.integers(-limit, limit + 1, (channels, products)).astype(np.int8)
    x = QuantParams(
        scale=float(np.float32(rng.uniform(0.01, 0.05))), zero_point=0, qmin=0, qmax=high, storage="uint8"
    )
    scales = rng.uniform(0.5, 1.5, channels).astype(np.float32) * np.float32(0.2 / limit)
    spread = float(x.scale * scales.mean() * high * limit * np.sqrt(products) / 2)
    y = QuantParams(scale=float(np.float32(spread / 128)), zero_point=117, qmin=0, qmax=255, storage="uint8")
    bias = rng.normal(0, spread / 4, channels).astype(np.float32)
    return Layer(codes=codes, bias=bias, x=x, y=y), scales


def differing_sums(one: Layer, scales: np.ndarray, *, channel: int) -> int:
    """Every integer between the smallest and the largest sum, in rational arithmetic."""
    assert one.bias is not None
    row = one.codes[channel].astype(np.int64)
    bias = int(integer.quantise_bias(one.bias[channel], x_scale=one.x.scale, w_scale=scales[channel])[0])
    high = int(np.maximum(row, 0).sum()) * one.x.qmax + bias
    low = int(np.minimum(row, 0).sum()) * one.x.qmax + bias
    sums = np.arange(low, high + 1)
    multiplier = integer.conv_multiplier(one.x.scale, scales[channel], one.y.scale)
    got = integer.requantise(sums, multiplier=multiplier, zero_point=one.y.zero_point, qmin=0, qmax=255)
    exact = Fraction(one.x.scale) * Fraction(float(scales[channel])) / Fraction(one.y.scale)
    wanted = (
        np.array([half_even(int(s) * exact.numerator, exact.denominator) for s in sums]) + one.y.zero_point
    )
    return int((got != wanted.clip(0, 255)).sum())


def half_even(numerator: int, denominator: int) -> int:
    quotient, rest = divmod(2 * numerator + denominator, 2 * denominator)
    return quotient - 1 if rest == 0 and quotient % 2 else quotient


@pytest.mark.parametrize(("bits", "high"), [(2, 15), (4, 15), (8, 255)])
def test_after_the_move_every_sum_is_exact(bits: int, high: int) -> None:
    one, scales = layer(3, bits=bits, high=high, products=144 if bits < 8 else 12)
    moved = exact_scales(one, scales)
    assert moved.inexact == 0
    wrong_before = np.array([differing_sums(one, scales, channel=c) for c in (0, 1)])
    assert [differing_sums(one, moved.scales, channel=c) for c in (0, 1)] == [0, 0]
    changed = moved.scales[:2] != scales[:2]
    assert (changed == (wrong_before > 0)).all()


def test_the_least_move_is_taken() -> None:
    one, scales = layer(5, bits=8, high=255, products=48)
    moved = exact_scales(one, scales)
    assert moved.channels > 0 and moved.inexact == 0
    ulps = moved.scales.view(np.int32).astype(np.int64) - scales.view(np.int32)
    assert moved.furthest == np.abs(ulps).max() > 0
    c = int(np.abs(ulps).argmax())
    for step in range(1, min(3, int(np.abs(ulps[c])))):
        for sign in (1, -1):
            nearer = scales.copy()
            nearer[c : c + 1] = (scales[c : c + 1].view(np.int32) + np.int32(sign * step)).view(np.float32)
            assert differing_sums(one, nearer, channel=c) > 0


def test_exact_scales_are_left_alone() -> None:
    one, scales = layer(3, bits=2, high=15)
    scales = np.full_like(scales, 2.0**-6)
    x = QuantParams(scale=0.25, zero_point=0, qmin=0, qmax=15, storage="uint8")
    y = QuantParams(scale=0.5, zero_point=117, qmin=0, qmax=255, storage="uint8")
    moved = exact_scales(Layer(codes=one.codes, bias=one.bias, x=x, y=y), scales)
    assert (moved.scales == scales).all()
    assert (moved.channels, moved.furthest, moved.inexact) == (0, 0, 0)
