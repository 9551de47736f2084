"""Codes that wait for their floats: the quantisation's short cuts, and the one way to become an array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixport.validate.interpreter.values import (
    CODE_TYPES,
    UNKNOWN,
    Dequantised,
    Quantisation,
    TensorInfo,
    Unknown,
    as_array,
)

f32 = np.float32


def quantisation(scale: Any, zero_point: Any = 0, axis: int = 1) -> Quantisation:
    return Quantisation(
        scale=np.asarray(scale, f32),
        zero_point=np.asarray(zero_point, np.int64),
        axis=axis,
        explicit_zero_point=True,
    )


def floats(codes: Any, quant: Quantisation, dtype: Any = np.uint8) -> np.ndarray:
    return as_array(Dequantised(codes=np.asarray(codes, dtype), quantisation=quant))


@pytest.mark.parametrize(
    ("quant", "per_tensor"),
    [
        (quantisation(0.3, 7), True),
        (quantisation([0.3], [7]), True),
        (quantisation([0.3, 0.5], 7), False),
        (quantisation(0.3, [7, 8]), False),
    ],
)
def test_one_scale_and_one_zero_point_are_a_whole_tensor_s(quant: Quantisation, per_tensor: bool) -> None:
    assert quant.per_tensor is per_tensor
    assert quant.one_scale == f32(0.3) and isinstance(quant.one_scale, f32)
    assert quant.one_zero_point == 7 and isinstance(quant.one_zero_point, int)


def test_code_types_are_those_of_8_and_16_bits() -> None:
    assert sorted(one.name for one in CODE_TYPES) == ["int16", "int8", "uint16", "uint8"]


def test_arrays_pass_through_untouched() -> None:
    x = np.asarray([1.5, np.nan], f32)
    assert as_array(x) is x


def test_floats_are_one_float32_multiplication_of_the_difference() -> None:
    got = floats([0, 117, 255], quantisation(0.1, 117))
    assert got.dtype == f32
    np.testing.assert_array_equal(got, np.asarray([-117, 0, 138], f32) * f32(0.1))


def test_16_bit_differences_do_not_wrap() -> None:
    got = floats([0, 65535], quantisation(0.5, 65535), np.uint16)
    np.testing.assert_array_equal(got, np.asarray([-32767.5, 0], f32))
    got = floats([-32768], quantisation(1.0, 32767), np.int16)
    np.testing.assert_array_equal(got, np.asarray([-65535], f32))


def test_a_32_bit_difference_rounds_once_to_float32() -> None:
    # 2^24 + 1 is a tie of two floats, and goes to the even one.
    got = floats([2**24 + 1, 2**24 + 3], quantisation(1.0), np.int32)
    np.testing.assert_array_equal(got, np.asarray([2**24, 2**24 + 4], f32))


@pytest.mark.parametrize(
    ("axis", "zero_point", "expected"),
    [
        (0, [1, 2], [[-0.5, 0.5], [0.0, 0.25]]),
        (1, [1, 2], [[-0.5, 0.0], [0.5, 0.25]]),
        (-1, 0, [[0.0, 0.5], [1.0, 0.75]]),
    ],
)
def test_scales_go_along_their_axis(axis: int, zero_point: Any, expected: list[list[float]]) -> None:
    got = floats([[0, 2], [2, 3]], quantisation([0.5, 0.25], zero_point, axis))
    np.testing.assert_array_equal(got, np.asarray(expected, f32))


def test_unknowns_are_alike_and_known_tensors_start_with_nothing() -> None:
    assert Unknown() == UNKNOWN
    info = TensorInfo(kind="float")
    assert (info.low, info.high, info.dtype, info.constant, info.integers) == (0, 0, None, False, False)
