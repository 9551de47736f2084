"""Fused kernels by hand: exact sums, ties, saturation at both ends, and sums that int32 does not hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixport.arithmetic.definitions import ONNXRUNTIME
from mixport.records.errors import UnsupportedModelError
from mixport.validate.interpreter import kernels_integer
from mixport.validate.interpreter.graph import Array, Node
from mixport.validate.interpreter.kernels_integer import FUSED, quantise
from mixport.validate.interpreter.values import Dequantised, Quantisation, Saturation

f32 = np.float32


def saturation(scale: float = 1.0, zero_point: int = 0, dtype: Any = np.uint8) -> Saturation:
    info = np.iinfo(dtype)
    return Saturation(
        scale=f32(scale), zero_point=zero_point, low=info.min, high=info.max, dtype=np.dtype(dtype)
    )


def codes(
    values: Any, scale: Any = 1.0, zero_point: Any = 0, *, dtype: Any = np.uint8, axis: int = 0
) -> Dequantised:
    quantisation = Quantisation(
        scale=np.asarray(scale, f32),
        zero_point=np.asarray(zero_point, np.int64),
        axis=axis,
        explicit_zero_point=True,
    )
    return Dequantised(codes=np.asarray(values, dtype), quantisation=quantisation)


def run(kind: Any, sat: Saturation | None, *args: Dequantised | None, **attributes: Any) -> Array:
    node = Node(index=0, name="n", op=kind, inputs=(), outputs=("y",), attributes=attributes)
    return FUSED[kind](ONNXRUNTIME, node, sat, args)


def test_a_convolution_sums_its_window_and_rounds_half_to_even() -> None:
    x = codes(np.arange(9).reshape(1, 1, 3, 3))
    w = codes([[[[1, 0], [0, 1]]], [[[-1, 0], [0, 0]]]], scale=[0.5, 1.0], dtype=np.int8)
    bias = codes([1, 2], dtype=np.int32)
    got = run("conv", saturation(zero_point=3), x, w, bias)
    # Sums 5, 7, 11, 13 times 0.5 are ties: 2, 4, 6 and 6, then the zero point.
    assert got.dtype == np.uint8 and got[0, 0].tolist() == [[5, 7], [9, 9]]
    assert got[0, 1].tolist() == [[5, 4], [2, 1]]


def test_padding_reads_the_zero_point_and_groups_keep_apart() -> None:
    x = codes(np.full((1, 2, 1, 1), 10), zero_point=4)
    w = codes(np.ones((2, 1, 3, 3)) * np.asarray([1, 40]).reshape(2, 1, 1, 1), dtype=np.int8)
    got = run("conv", saturation(zero_point=20), x, w, None, pads=(1, 1, 1, 1), group=2)
    assert got.reshape(-1).tolist() == [26, 255]
    got = run(
        "conv", saturation(), codes([[[3, 5, 9]]]), codes([[[2, 1]]], dtype=np.int8), None, strides=(2,)
    )
    assert got.tolist() == [[[11]]]


def test_batches_are_convolved_in_chunks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, w = (
        codes(rng.integers(0, 256, (5, 3, 4, 4)), zero_point=7),
        codes(rng.integers(-9, 9, (2, 3, 3, 3)), scale=0.01, dtype=np.int8),
    )
    whole = run("conv", saturation(zero_point=90), x, w, None)
    monkeypatch.setattr(kernels_integer, "_CHUNK_ELEMENTS", 1)
    np.testing.assert_array_equal(run("conv", saturation(zero_point=90), x, w, None), whole)
    assert whole.shape == (5, 2, 2, 2) and len(np.unique(whole)) > 9
    assert run("conv", saturation(), codes(np.zeros((0, 3, 4, 4))), w, None).shape == (0, 2, 2, 2)


def test_a_gemm_without_a_quantiser_gives_the_sum_times_one_product_of_scales() -> None:
    x, w = codes([[130, 1]], scale=0.1, zero_point=128), codes([[3, 2], [-5, 7]], scale=0.3, dtype=np.int8)
    bias = codes([100, -1], dtype=np.int32)
    sums = np.asarray([[6 - 254 + 100, -10 - 889 - 1]])
    got = run("gemm", None, x, w, bias, transB=1)
    np.testing.assert_array_equal(got, sums.astype(f32) * (f32(0.1) * f32(0.3)))
    assert got.dtype == f32
    turned = run("gemm", None, x, codes(w.codes.T, scale=0.3, dtype=np.int8), bias)
    np.testing.assert_array_equal(turned, got)


def test_a_matmul_centres_both_sides_and_saturates() -> None:
    a, b = codes([[0, 255]], zero_point=128), codes([[0, 255], [255, 0]], zero_point=128)
    # -128 * -128 + 127 * 127 = 32513, and -128 * 127 + 127 * -128 = -32512.
    assert run("matmul", saturation(scale=200.0), a, b).tolist() == [[163, 0]]
    assert run("matmul", None, a, b).tolist() == [[32513.0, -32512.0]]


def test_weights_may_have_a_zero_point_a_channel() -> None:
    w = codes([[5, 9], [5, 9]], scale=[1.0, 1.0], zero_point=[5, 8], axis=1)
    assert run("matmul", None, codes([[3, 4]]), w).tolist() == [[0.0, 7.0]]


def test_an_add_is_integers_alone() -> None:
    a, b = codes([0, 10, 255, 3], scale=0.5, zero_point=3), codes([0, 5, 255, 5], scale=0.75, zero_point=5)
    # Ratios 2 and 3: 2 (a - 3) + 3 (b - 5) + 7, saturated.
    got = run("add", saturation(scale=0.25, zero_point=7), a, b)
    assert got.dtype == np.uint8 and got.tolist() == [0, 21, 255, 7]
    with pytest.raises(ValueError, match="not an integer multiple"):
        run("add", saturation(scale=0.3), a, b)


@pytest.mark.parametrize(("zero_point", "expected"), [(5, [6, 6, 4, 4]), (6, [6, 8, 6, 4])])
def test_a_multiply_adds_the_zero_point_before_it_rounds(zero_point: int, expected: list[int]) -> None:
    a, b = codes([2, 6, 2, 6], scale=0.25), codes([1, 1, -1, -1], scale=1.0, dtype=np.int8)
    # Products 2, 6, -2, -6 times 1/4 are ties: with an odd zero point they go the other way.
    assert run("multiply", saturation(zero_point=zero_point), a, b).tolist() == expected


def test_an_average_divides_by_its_window() -> None:
    x = codes([[[[3, 4], [6, 6]], [[255, 255], [255, 255]]]], zero_point=3)
    # (0 + 1 + 3 + 3) / 4 / 0.5 = 3.5 rounds to 4.
    assert run("average", saturation(scale=0.5, zero_point=1), x).tolist() == [[[[5]], [[255]]]]
    with pytest.raises(UnsupportedModelError, match=r"n \(GlobalAveragePool\): input has 3 axes, allowed 4"):
        run("average", saturation(), codes([[[1]]]))


def test_a_sum_beyond_int32_is_refused() -> None:
    x, w = codes([[255]]), codes([[127]], dtype=np.int8)
    fits = codes([2**31 - 1 - 255 * 127], dtype=np.int32)
    assert run("gemm", None, x, w, fits, transB=1).tolist() == [[2.0**31]]
    beyond = codes([2**31 - 255 * 127], dtype=np.int32)
    with pytest.raises(UnsupportedModelError, match="a sum reaches 2147483648, which int32 does not hold"):
        run("gemm", saturation(), x, w, beyond, transB=1)


def test_quantise_rounds_ties_to_even_and_saturates() -> None:
    x = np.asarray([0.5, 1.5, -0.5, 1e30, -np.inf, np.nan], f32)
    assert quantise(x, saturation(zero_point=3)).tolist() == [3, 5, 3, 255, 0, 0]
    wide = quantise(x, saturation(dtype=np.int16))
    assert wide.dtype == np.int16 and wide[3:].tolist() == [32767, -32768, -32768]
