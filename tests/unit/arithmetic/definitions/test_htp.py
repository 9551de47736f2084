"""HTP's definition on digests of the simulator's codes, and by hand in fractions."""

from __future__ import annotations

import json
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixport.arithmetic.definitions import Htp, Layer, Operand, Output
from tests.htp_forms import ARCHES, FORMS, RECORDED, SEEDS, defined, digest

f32 = np.float32
RECORDS: dict[str, str] = json.loads(RECORDED.read_text(encoding="utf-8"))["codes"]

scales = st.floats(2.0**-13, 1.0, width=32).map(f32)
zeros = st.integers(0, 255)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("form", FORMS)
def test_codes_are_the_simulator_s(form: str, arch: str) -> None:
    for seed in SEEDS:
        assert digest(defined(form, seed, arch)) == RECORDS[f"{arch}/{form}/{seed}"], seed


def test_the_records_hold_every_form() -> None:
    assert set(RECORDS) == {f"{arch}/{form}/{seed}" for arch in ARCHES for form in FORMS for seed in SEEDS}


@pytest.mark.parametrize("form", ["conv 3x3", "depthwise", "gemm", "matmul"])
def test_the_two_architectures_differ(form: str) -> None:
    assert any(RECORDS[f"htp68/{form}/{seed}"] != RECORDS[f"htp73/{form}/{seed}"] for seed in SEEDS)


@pytest.mark.parametrize("form", ["add", "mul", "average", "rescale", "depthwise, stride 2"])
def test_and_agree_where_nothing_is_truncated(form: str) -> None:
    assert all(RECORDS[f"htp68/{form}/{seed}"] == RECORDS[f"htp73/{form}/{seed}"] for seed in SEEDS)


def factor_of(x: np.float32, w: np.float32, y: np.float32, *, bits: int) -> tuple[Fraction, int]:
    """m to some fraction bits, and n, of x * w / y = m * 2^-n, in float64 as the definition does."""
    whole = float(np.float64(x) * np.float64(w) / np.float64(y))
    n = 0
    while whole < 1.0:
        whole, n = whole * 2.0, n + 1
    while whole >= 2.0:
        whole, n = whole / 2.0, n - 1
    return Fraction(floor(whole * 2**bits + 0.5), 2**bits), n


def half_up(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))


@given(x=scales, w=scales, y=scales, zero=zeros, total=st.integers(-(2**24), 2**24))
def test_layers_in_fractions(x: np.float32, w: np.float32, y: np.float32, zero: int, total: int) -> None:
    """Without a bias; 68 takes the zero point into the sum, 73 adds it behind."""
    layer = Layer(x_scale=x, w_scale=np.asarray([w]), bias=None, axis=-1)
    output = Output(scale=y, zero_point=zero, low=0, high=255)
    sums = np.asarray([[total]], np.int64)
    m, n = factor_of(x, w, y, bits=11)
    t = floor(Fraction(total) / Fraction(2) ** (n - 4))
    wanted = half_up((t + Fraction(1, 2)) * m / 16) + zero
    assert Htp(73).layer(sums, layer, output).tolist() == [[min(max(wanted, 0), 255)]]
    m, _ = factor_of(x, w, y, bits=10)
    z = floor(float(f32(zero) / f32(f32(f32(x * w) / y) * f32(1))) + 0.5)
    t = floor(Fraction(total + z) / Fraction(2) ** (n - 4))
    assert Htp(68).layer(sums, layer, output).tolist() == [[min(max(half_up(t * m / 16), 0), 255)]]


@given(x=scales, y=scales, zero=zeros, total=st.integers(-(2**20), 2**20), count=st.integers(4, 400))
def test_averages_in_fractions(x: np.float32, y: np.float32, zero: int, total: int, count: int) -> None:
    whole = float(np.float64(x) / (np.float64(y) * count))
    m, n = np.frexp(whole)
    m14 = Fraction(floor(float(m) * 2**15 + 0.5), 2**14)
    wanted = half_up(total * m14 / Fraction(2) ** int(1 - n)) + zero
    found = Htp(68).average(
        np.asarray([total]), count=count, x_scale=x, output=Output(scale=y, zero_point=zero, low=0, high=255)
    )
    assert found.tolist() == [min(max(wanted, 0), 255)]


@given(
    ratios=st.tuples(st.floats(0.01, 8.0), st.floats(0.01, 8.0)),
    points=st.tuples(zeros, zeros, zeros),
    codes=st.tuples(zeros, zeros),
)
def test_sums_are_within_a_step_of_the_exact_ones(
    ratios: tuple[float, float], points: tuple[int, int, int], codes: tuple[int, int]
) -> None:
    y = f32(0.02)
    a, b = (
        Operand(codes=np.asarray([code], np.uint8), scale=f32(y * ratio), zero_point=point)
        for code, ratio, point in zip(codes, ratios, points[:2], strict=True)
    )
    output = Output(scale=y, zero_point=points[2], low=0, high=255)
    exact = (
        sum((int(one.codes[0]) - one.zero_point) * float(one.scale) / float(y) for one in (a, b)) + points[2]
    )
    found = int(Htp(68).add(a, b, output)[0])
    assert abs(found - min(max(exact, 0.0), 255.0)) <= 1.0 + 256 * 2.0**-10 * (sum(ratios) + 1)
    swapped = int(Htp(73).add(b, a, output)[0])
    assert found == swapped, "the order of the operands decides nothing"


@given(scale=scales, point=zeros)
def test_the_same_scale_and_zero_point_leave_codes(scale: np.float32, point: int) -> None:
    codes = np.arange(256).astype(np.uint8)
    x = Operand(codes=codes, scale=scale, zero_point=point)
    found = Htp(68).rescale(x, Output(scale=scale, zero_point=point, low=0, high=255))
    assert found.tolist() == codes.tolist()


@pytest.mark.parametrize("arch", [68, 73])
def test_int8_codes_are_uint8_codes_less_128(arch: int) -> None:
    rng = np.random.default_rng(0)
    sums = rng.integers(-60_000, 60_000, (1, 4, 16, 16))
    layer = Layer(
        x_scale=f32(0.02),
        w_scale=rng.uniform(0.001, 0.004, 4).astype(f32),
        bias=None,
        axis=1,
    )
    unsigned = Output(scale=f32(0.05), zero_point=111, low=0, high=255)
    signed = Output(scale=f32(0.05), zero_point=111 - 128, low=-128, high=127, lowest=-128)
    definition = Htp(68 if arch == 68 else 73)
    assert np.array_equal(
        definition.layer(sums, layer, unsigned) - 128, definition.layer(sums, layer, signed)
    )


def biased(bias: list[int], *, w_scale: list[float] | None = None) -> list[int]:
    """What arch 73 adds, seen where one unit is one code."""
    scale = np.asarray(w_scale or [1.0], f32)
    layer = Layer(x_scale=f32(0.02), w_scale=scale, bias=np.asarray(bias, np.int64), axis=-1)
    plain = Layer(x_scale=f32(0.02), w_scale=scale, bias=None, axis=-1)
    output = Output(scale=f32(0.02 * float(scale.max())), zero_point=0, low=-(2**31), high=2**31 - 1)
    sums = np.asarray([bias], np.int64)
    shift = Htp(73).layer(sums, layer, output) - Htp(73).layer(sums, plain, output)
    return shift[0].tolist()


def test_biases_of_73_come_nearer_to_zero_where_the_largest_is_no_power_of_two() -> None:
    assert biased([1, -3, 7, 100, 1024]) == [0, 0, 0, 0, 0]
    found = biased([*range(-999, 1000), 1000])
    assert {-1, 0, 1} == set(found)
    for code, moved in zip(range(-999, 1000), found, strict=False):
        assert moved == 0 or moved == (-1 if code > 0 else 1), code
        assert moved == -found[999 - code], "the sign decides nothing"
    assert found[999] == 0, "no bias stays none"


def test_a_layer_whose_biases_are_all_zero_adds_none() -> None:
    assert biased([0, 0]) == [0, 0]


def test_scales_far_apart_are_refused() -> None:
    a = Operand(codes=np.zeros(1, np.uint8), scale=f32(1.0), zero_point=0)
    with pytest.raises(ValueError, match="too large"):
        Htp(68).add(a, a, Output(scale=f32(1e-5), zero_point=0, low=0, high=255))
