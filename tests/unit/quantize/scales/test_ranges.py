from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixport.arithmetic import integer
from mixport.arithmetic.dtypes import IntType
from mixport.arithmetic.scale_grid import ScaleGrid
from mixport.quantize.scales.histograms import Histogram, HistogramObserver
from mixport.quantize.scales.ranges import (
    P,
    ScaleRule,
    activation_params,
    histogram_error,
    short_mantissa,
    weight_scales,
)

ANY = ScaleRule()


def histogram(values: np.ndarray) -> Histogram:
    observer = HistogramObserver("x")
    observer.update(torch.from_numpy(values.astype(np.float32)))
    return observer.result()


@given(st.integers(2, 8), st.integers(0, 1000))
def test_weight_codes_stay_in_range_and_beat_the_largest_magnitude_scale(bits: int, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((5, 3, 3, 3)).astype(np.float32)
    scales, codes = weight_scales(weight, bits=bits)
    kind = IntType(bits=bits, signed=True, narrow=bits == 8)
    assert codes.min() >= kind.qmin
    assert codes.max() <= kind.qmax
    flat = weight.reshape(5, -1).astype(np.float64)
    error = (np.abs(codes.reshape(5, -1) * scales.astype(np.float64)[:, None] - flat) ** P).sum(1)
    plain = np.maximum(flat.max(1) / kind.qmax, flat.min(1) / kind.qmin)[:, None]
    plain_error = (np.abs(np.clip(np.rint(flat / plain), kind.qmin, kind.qmax) * plain - flat) ** P).sum(1)
    # float32 sums of powers may order two near-equal candidates differently from float64
    assert (error <= plain_error * (1 + 1e-4)).all()


def test_zero_channels_and_equal_weights_are_exact() -> None:
    weight = np.stack([np.zeros((3, 3)), np.full((3, 3), 0.25), np.full((3, 3), -7.0)]).astype(np.float32)[
        :, None
    ]
    for bits in range(2, 9):
        scales, codes = weight_scales(weight, bits=bits)
        assert (scales > 0).all()
        assert not codes[0].any()
        np.testing.assert_allclose(codes * scales.reshape(-1, 1, 1, 1), weight, rtol=1e-6)


@given(st.floats(1e-6, 1e6))
def test_short_mantissas_multiply_exactly(scale: float) -> None:
    short = short_mantissa(scale)
    assert abs(short - scale) <= scale * 2.0**-12
    for ratio in (1, 2, 3, 4):
        for code in (-255, -1, 0, 1, 255):
            exact = ratio * short * code
            assert float(np.float32(np.float32(ratio * short) * np.float32(code))) == exact
        assert integer.add_ratio(ratio * short, short) == ratio


@pytest.mark.parametrize("bits", range(2, 9))
def test_zero_is_a_code_and_unsigned_tensors_start_there(bits: int) -> None:
    rng = np.random.default_rng(bits)
    signed = activation_params(
        histogram(rng.standard_normal(5000)), bits=bits, storage="uint8", bounds=None, rule=ANY
    )
    assert signed.qmin == 0
    assert signed.qmax == 2**bits - 1
    assert 0 < signed.zero_point < signed.qmax
    unsigned = activation_params(
        histogram(np.abs(rng.standard_normal(5000))), bits=bits, storage="uint8", bounds=(0.0, None), rule=ANY
    )
    assert unsigned.zero_point == 0


def test_relu6_bound_is_a_code_or_the_saturation() -> None:
    values = np.clip(np.random.default_rng(0).standard_normal(5000) * 8, 0, 6)
    params = activation_params(histogram(values), bits=8, storage="uint8", bounds=(0.0, 6.0), rule=ANY)
    assert (params.qmax - params.zero_point) * params.scale <= 6.0 + params.scale / 2


def test_symmetric_and_power_of_two_targets() -> None:
    rule = ScaleRule(zero_point="middle", grid=ScaleGrid(power_of_two=True))
    params = activation_params(
        histogram(np.random.default_rng(0).standard_normal(5000)),
        bits=8,
        storage="uint8",
        bounds=None,
        rule=rule,
    )
    assert params.zero_point == 128
    assert np.log2(params.scale) == np.rint(np.log2(params.scale))


def test_a_constant_zero_tensor_gets_a_positive_scale() -> None:
    params = activation_params(histogram(np.zeros(10)), bits=8, storage="uint8", bounds=None, rule=ANY)
    # A range of a millionth, whose 255 steps start at 0: any scale would do, but none of 0.
    assert params.scale == float(np.float32(1e-6 / 255))
    assert (params.zero_point, params.qmin, params.qmax) == (0, 0, 255)


def test_a_lopsided_tensor_is_cut_on_its_long_side_alone() -> None:
    """GELU: many small negative values, few large ones. Cutting both ends by one factor would leave no code
    below zero.
    """
    values = torch.nn.functional.gelu(
        torch.randn(200_000, generator=torch.Generator().manual_seed(1)) * 1.5 - 0.5
    )
    seen = histogram(values.numpy())
    found = activation_params(seen, bits=4, storage="uint8", bounds=None, rule=ANY)

    def error(scale: float, zero_point: int) -> float:
        return histogram_error(*seen.fine, scale=scale, zero_point=zero_point, levels=15)

    assert found.zero_point >= 1
    best = min(error(scale, z) for scale in np.linspace(0.1, 0.6, 101) for z in range(4))
    assert error(found.scale, found.zero_point) <= 1.02 * best


def test_a_lower_power_keeps_the_many_small_values() -> None:
    """Attention weights: nearly all small, a few up to 1. The smaller the power, the finer the step."""
    scores = torch.randn(4000, 64, generator=torch.Generator().manual_seed(2))
    scores[:20] *= 8.0
    seen = histogram(torch.softmax(scores, -1).numpy())
    fine, coarse = (
        activation_params(seen, bits=4, storage="uint8", bounds=None, rule=ANY, power=p).scale
        for p in (2.0, 3.0)
    )
    assert fine < 0.9 * coarse
