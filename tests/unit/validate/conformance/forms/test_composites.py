"""The composites' NumPy answers against the functions that they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from mixport.validate.conformance.forms.composites import layernorm_codes, softmax_bits, softmax_codes


@pytest.mark.parametrize(("count", "bits"), [(1, 16), (2, 16), (256, 16), (257, 15), (577, 14), (65536, 8)])
def test_numerators_of_a_row_sum_below_2_to_the_24(count: int, bits: int) -> None:
    assert softmax_bits(count) == bits
    assert count * min(2**bits, 65535) <= 2**24


def test_softmax_is_close_to_softmax() -> None:
    x = (np.random.default_rng(0).normal(size=(32, 197)) * 3).astype(np.float32)
    exact = np.exp(x - x.max(-1, keepdims=True).astype(np.float64))
    exact /= exact.sum(-1, keepdims=True)
    assert np.abs(softmax_codes(x, scale=1 / 255, zero_point=0) / 255 - exact).max() < 0.6 / 255


@pytest.mark.parametrize("whole", [False, True])
def test_layer_norm_is_close_to_layer_norm(whole: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-3000, 3000, (16, 192)).astype(np.int16)
    gamma, beta = rng.normal(1, 0.2, 192).astype(np.float32), rng.normal(0, 0.2, 192).astype(np.float32)
    real = x.astype(np.float64) * 0.001
    centred = real - real.mean(-1, keepdims=True)
    exact = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * gamma + beta
    codes = layernorm_codes(
        x, gamma, beta, whole=whole, in_scale=0.001, epsilon=1e-6, scale=0.05, zero_point=128
    )
    assert np.abs((codes.astype(float) - 128) * 0.05 - exact).max() < 0.0255
