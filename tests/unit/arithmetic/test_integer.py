"""mixport.arithmetic.integer by itself: properties against rational arithmetic and naive loops."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixport.arithmetic import integer

f32 = np.float32
scales = st.floats(min_value=2**-20, max_value=2**10, width=32, exclude_min=True).map(f32)
codes8 = st.integers(0, 255)


def half_even(value: Fraction) -> int:
    return round(value)


@given(k=st.integers(-1000, 1000), exponent=st.integers(-12, 4), zero_point=st.integers(0, 255))
def test_quantise_rounds_ties_to_even(k: int, exponent: int, zero_point: int) -> None:
    scale = f32(2.0**exponent)
    tie = f32((k + 0.5) * 2.0**exponent)
    got = int(integer.quantise(tie, scale=scale, zero_point=zero_point, qmin=-5000, qmax=5000))
    assert got == half_even(Fraction(2 * k + 1, 2)) + zero_point


@given(
    x=st.floats(width=32, allow_nan=False),
    scale=scales,
    zero_point=codes8,
    low=st.integers(0, 100),
    high=st.integers(101, 255),
)
def test_quantise_saturates(x: float, scale: f32, zero_point: int, low: int, high: int) -> None:
    with np.errstate(over="ignore"):
        got = int(integer.quantise(f32(x), scale=scale, zero_point=zero_point, qmin=low, qmax=high))
        quotient = f32(x) / scale
    assert low <= got <= high
    if np.isfinite(quotient):
        assert got == min(max(half_even(Fraction(float(quotient))) + zero_point, low), high)


def test_quantise_not_a_number_and_infinities() -> None:
    got = integer.quantise(f32([np.nan, np.inf, -np.inf]), scale=f32(0.1), zero_point=7, qmin=1, qmax=200)
    assert got.tolist() == [1, 200, 1]


def test_quantise_divides_and_does_not_multiply_by_a_reciprocal() -> None:
    scale = f32(0.049)
    x = ((np.arange(-127, 128) + 0.5) * np.float64(scale)).astype(f32)
    by_reciprocal = np.rint(x * (f32(1) / scale))
    assert (
        np.count_nonzero(by_reciprocal != integer.quantise(x, scale=scale, zero_point=0, qmin=-128, qmax=128))
        > 0
    )


@given(code=st.integers(-(2**15), 2**15 - 1), scale=scales, zero_point=st.integers(-128, 255))
def test_round_trip(code: int, scale: f32, zero_point: int) -> None:
    real = integer.dequantise(np.int16(code), scale=scale, zero_point=zero_point)
    assert (
        int(integer.quantise(real, scale=scale, zero_point=zero_point, qmin=-(2**15), qmax=2**15 - 1)) == code
    )


@given(
    a=codes8,
    b=codes8,
    zeros=st.tuples(codes8, codes8, codes8),
    ratios=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    mantissa=st.integers(1, 2**12),
    exponent=st.integers(-24, 0),
)
def test_add_is_rational_arithmetic(
    a: int, b: int, zeros: tuple[int, int, int], ratios: tuple[int, int], mantissa: int, exponent: int
) -> None:
    scale = Fraction(mantissa) * Fraction(2) ** exponent
    got = integer.add(
        np.uint8([a]),
        np.uint8([b]),
        a_zero_point=zeros[0],
        b_zero_point=zeros[1],
        a_ratio=ratios[0],
        b_ratio=ratios[1],
        zero_point=zeros[2],
        qmin=0,
        qmax=255,
    )
    real = ratios[0] * scale * (a - zeros[0]) + ratios[1] * scale * (b - zeros[1])
    assert int(got[0]) == min(max(half_even(real / scale) + zeros[2], 0), 255)


@given(n=st.integers(1, 255), mantissa=st.integers(1, 2**16 - 1), exponent=st.integers(-30, 0))
def test_add_ratio_finds_exact_multiples(n: int, mantissa: int, exponent: int) -> None:
    scale = float(mantissa) * 2.0**exponent
    assert integer.add_ratio(n * scale, scale) == n


@given(n=st.integers(1, 255), mantissa=st.integers(2**15, 2**16 - 1))
def test_add_ratio_refuses_neighbours(n: int, mantissa: int) -> None:
    scale = f32(mantissa * 2.0**-20)
    assert integer.add_ratio(float(np.nextafter(f32(n) * scale, f32(np.inf))), float(scale)) is None


@pytest.mark.parametrize("ratio", [0.5, 0.25, 1.5])
def test_add_ratio_refuses_fractions(ratio: float) -> None:
    assert integer.add_ratio(ratio * 0.125, 0.125) is None


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_convolution_equals_a_naive_loop(data: st.DataObject) -> None:
    draw = data.draw
    groups, per_group, out_per_group = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 2)),
    )
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    strides, dilations = (
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
    )
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4))
    zero_point = draw(codes8)
    spans = [dilations[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    sizes = [max(spans[i] - pads[i] - pads[i + 2], 1) + draw(st.integers(0, 3)) for i in (0, 1)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.integers(0, 256, (2, groups * per_group, *sizes)).astype(np.uint8)
    w = rng.integers(-128, 128, (groups * out_per_group, per_group, *kernel)).astype(np.int8)
    got = integer.conv_accumulate(
        x, w, x_zero_point=zero_point, strides=strides, pads=pads, dilations=dilations, groups=groups
    )
    rows = (sizes[0] + pads[0] + pads[2] - spans[0]) // strides[0] + 1
    columns = (sizes[1] + pads[1] + pads[3] - spans[1]) // strides[1] + 1
    assert got.shape == (2, groups * out_per_group, rows, columns)
    for n, o, r, c in np.ndindex(*got.shape):
        total = 0
        for k, i, j in np.ndindex(per_group, *kernel):
            row, column = (
                r * strides[0] - pads[0] + i * dilations[0],
                c * strides[1] - pads[1] + j * dilations[1],
            )
            if 0 <= row < sizes[0] and 0 <= column < sizes[1]:
                channel = (o // out_per_group) * per_group + k
                total += (int(x[n, channel, row, column]) - zero_point) * int(w[o, k, i, j])
        assert int(got[n, o, r, c]) == total


@given(
    m=st.integers(1, 4),
    k=st.integers(1, 40),
    n=st.integers(1, 4),
    zeros=st.tuples(codes8, codes8),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=50, deadline=None)
def test_matmul_equals_python_integers(m: int, k: int, n: int, zeros: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (2, m, k)).astype(np.uint8), rng.integers(0, 256, (k, n)).astype(np.uint8)
    got = integer.matmul_accumulate(a, b, a_zero_point=zeros[0], b_zero_point=zeros[1])
    for batch, i, j in np.ndindex(2, m, n):
        assert int(got[batch, i, j]) == sum(
            (int(a[batch, i, p]) - zeros[0]) * (int(b[p, j]) - zeros[1]) for p in range(k)
        )


@given(acc=st.integers(-(2**31), 2**31 - 1), multiplier=scales, zero_point=codes8)
def test_requantise_is_two_float32_steps(acc: int, multiplier: f32, zero_point: int) -> None:
    got = int(
        integer.requantise(np.array([acc]), multiplier=multiplier, zero_point=zero_point, qmin=0, qmax=255)[0]
    )
    product = f32(acc) * multiplier
    assert got == min(max(half_even(Fraction(float(product))) + zero_point, 0), 255)


def test_multiply_adds_the_zero_point_before_rounding() -> None:
    # 1 * 1 * 0.5 = 0.5: alone it rounds to 0, with an odd zero point 7.5 rounds to 8.
    a = np.uint8([1])
    got = integer.multiply(
        a, a, a_zero_point=0, b_zero_point=0, multiplier=f32(0.5), zero_point=7, qmin=0, qmax=255
    )
    assert got.tolist() == [8]
    assert integer.requantise(
        np.array([1]), multiplier=f32(0.5), zero_point=7, qmin=0, qmax=255
    ).tolist() == [7]


def test_multiplier_order_of_operations_matters() -> None:
    x, w, y = f32(0.0317), f32(0.0123), f32(0.0711)
    assert integer.conv_multiplier(x, w, y) == f32(f32(x * w) / y)
    assert integer.average_multiplier(x, y, 49) == f32(x / f32(y * f32(49)))


@given(value=st.floats(-1e6, 1e6), x_scale=scales, w_scale=scales)
def test_bias_is_the_nearest_code_or_an_error(value: float, x_scale: f32, w_scale: f32) -> None:
    exact = Fraction(value) / Fraction(float(x_scale * w_scale))
    if abs(exact) > 2**31 + 1:
        with pytest.raises(OverflowError, match="int32"):
            integer.quantise_bias(np.array([value]), x_scale=x_scale, w_scale=np.array([w_scale]))
    elif abs(exact) < 2**31 - 1:
        codes, scale = integer.quantise_bias(np.array([value]), x_scale=x_scale, w_scale=np.array([w_scale]))
        assert codes.dtype == np.int32 and scale[0] == x_scale * w_scale
        assert abs(Fraction(int(codes[0])) - exact) <= Fraction(1, 2) + abs(exact) * Fraction(1, 2**50)


def test_check_accumulator_at_the_limits() -> None:
    assert integer.check_accumulator(np.array([2**31 - 1, -(2**31)]))
    assert not integer.check_accumulator(np.array([2**31]))
    assert not integer.check_accumulator(np.array([-(2**31) - 1]))
    assert integer.check_accumulator(np.zeros(0, np.int64))
