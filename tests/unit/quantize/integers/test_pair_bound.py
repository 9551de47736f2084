"""Pairs that could saturate: found, repaired, and nothing else touched; against a model of the saturating
kernel.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixport.arithmetic import integer
from mixport.arithmetic.dtypes import IntType
from mixport.arithmetic.neighbour_pairs import (
    forms_pairs,
    from_kernel_order,
    in_pairs,
    kernel_order,
    pair_violations,
)
from mixport.arithmetic.quant_params import QuantParams
from mixport.quantize.integers.pair_bound import PairBound, project_pairs, repair_pairs
from mixport.quantize.integers.settle import RoundedLayer, check_pairs, keep_pair_bound, settle
from mixport.quantize.scales.ranges import P, weight_scales
from mixport.records.errors import InvariantError

FULL = PairBound(largest_code=255, limit=32767)
EVERY = np.mgrid[-127:128, -127:128].reshape(2, -1).T
W8 = IntType(bits=8, signed=True, narrow=True)


def saturating_dot(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """x64 without VNNI: VPMADDUBSW on stored codes [N, K] and weights [O, K], then exact sums. int64 [N,
    O].
    """
    products = in_pairs(codes.astype(np.int64))[:, None] * in_pairs(weights.astype(np.int64))[None]
    return np.clip(products.sum(-1), -32768, 32767).sum(-1)


def saturating_conv(x: np.ndarray, w: np.ndarray, *, zero_point: int) -> np.ndarray:
    """A 3x3 convolution of padding 1 as MLAS runs it: windows channels last, stored codes, zero point taken
    off the sum.
    """
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=zero_point)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))  # N C H W 3 3
    rows = windows.transpose(0, 2, 3, 4, 5, 1).reshape(-1, w[0].size)
    sums = saturating_dot(rows, kernel_order(w)) - zero_point * kernel_order(w).astype(np.int64).sum(1)
    return sums.reshape(len(x), *x.shape[2:], len(w)).transpose(0, 3, 1, 2)


def hostile(rng: np.random.Generator, *, channels: int = 8) -> np.ndarray:
    """Float weights with many large neighbours of one sign."""
    weight = rng.standard_normal((6, channels, 3, 3)).astype(np.float32)
    weight[0], weight[1, ::2] = 1.0, -2.0
    weight[2] = np.abs(weight[2]).clip(0.9, None)
    return weight


@pytest.mark.parametrize("zero_point", [0, 3, 128])
@pytest.mark.parametrize("channels", [3, 8])
def test_a_conv_that_saturates_is_exact_after_the_repair(zero_point: int, channels: int) -> None:
    rng = np.random.default_rng(0)
    weight = hostile(rng, channels=channels)
    scales, codes = weight_scales(weight, bits=8)
    repaired = repair_pairs(weight, scales, codes, bits=8, bound=FULL)
    x = rng.integers(0, 256, (4, channels, 6, 6))
    for sign in (1, -1):  # every code at the end of its range that drives the pairs outwards
        for channel in range(6):
            kernel = sign * repaired.codes[channel].astype(np.int64)
            tile = np.where(np.tile(kernel, (1, 2, 2)) > 0, 255, 0)
            x = np.concatenate([x, tile[None]])
    padding = {"strides": (1, 1), "pads": (1, 1, 1, 1)}

    def exact(w: np.ndarray) -> np.ndarray:
        return integer.conv_accumulate(x, w, x_zero_point=zero_point, **padding)  # type: ignore[arg-type]

    assert (saturating_conv(x, codes, zero_point=zero_point) != exact(codes)).any()
    assert (saturating_conv(x, repaired.codes, zero_point=zero_point) == exact(repaired.codes)).all()
    assert repaired.beyond >= repaired.moved and repaired.beyond > 0


@given(
    values=st.lists(st.floats(-140, 140, width=32), min_size=2, max_size=2),
    largest_code=st.sampled_from([255, 254, 200, 129, 128]),
    limit=st.sampled_from([32767, 20000]),
)
@settings(max_examples=40, deadline=None)
def test_projection_is_the_nearest_pair(values: list[float], largest_code: int, limit: int) -> None:
    bound = PairBound(largest_code=largest_code, limit=limit)
    got, _ = project_pairs(np.array([values]), kind=W8, bound=bound)
    assert not pair_violations(got, largest_code=largest_code, limit=limit).any()

    def error(pair: np.ndarray) -> np.ndarray:
        return (np.abs(pair - np.array(values)) ** P).sum(-1)

    allowed = EVERY[~pair_violations(EVERY, largest_code=largest_code, limit=limit)[:, 0]]
    assert error(got[0]) <= error(allowed).min() * (1 + 1e-12) + 1e-12


@given(seed=st.integers(0, 1000), bits=st.integers(2, 8), largest_code=st.sampled_from([15, 127, 255]))
@settings(max_examples=40, deadline=None)
def test_only_what_the_bound_needs_changes(seed: int, bits: int, largest_code: int) -> None:
    weight = np.random.default_rng(seed).laplace(size=(8, 5, 3, 3)).astype(np.float32)
    weight[3] = 0.0
    scales, codes = weight_scales(weight, bits=bits)
    bound = PairBound(largest_code=largest_code, limit=32767)
    before = pair_violations(codes, largest_code=largest_code, limit=32767).any(1)
    if bits < 8 or largest_code < 128:
        assert not before.any()
    repaired = repair_pairs(weight, scales, codes, bits=bits, bound=bound)
    assert not pair_violations(repaired.codes, largest_code=largest_code, limit=32767).any()
    assert (repaired.codes[~before] == codes[~before]).all()
    assert (repaired.scales[~before] == scales[~before]).all()
    assert (repaired.scales >= scales).all()


def test_the_search_beats_both_plain_repairs() -> None:
    weight = hostile(np.random.default_rng(1))
    scales, codes = weight_scales(weight, bits=8)

    def error(s: np.ndarray, c: np.ndarray) -> np.ndarray:
        return (np.abs(c * s.reshape(-1, 1, 1, 1) - weight) ** P).reshape(6, -1).sum(1)

    repaired = repair_pairs(weight, scales, codes, bits=8, bound=FULL)
    got = error(repaired.scales, repaired.codes)
    same_scale, _ = project_pairs(kernel_order(weight) / scales[:, None], kind=W8, bound=FULL)
    doubled = np.rint(weight / (2 * scales.reshape(-1, 1, 1, 1)))
    assert (got <= error(scales, from_kernel_order(same_scale, shape=weight.shape)) * (1 + 1e-4)).all()
    assert (got <= error(2 * scales, doubled) * (1 + 1e-4)).all()


def test_kernel_order_is_channels_last_and_comes_back() -> None:
    weight = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    rows = kernel_order(weight)
    assert rows[0, :4].tolist() == [0, 4, 8, 1]
    assert (from_kernel_order(rows, shape=weight.shape) == weight).all()
    assert in_pairs(np.array([[1, 2, 3]])).tolist() == [[[1, 2], [3, 0]]]


def test_depthwise_weights_are_left_alone_and_grouped_ones_are_not() -> None:
    weight = np.ones((8, 1, 3, 3), np.float32)
    scales, codes = weight_scales(weight, bits=8)
    assert not forms_pairs(codes.shape, groups=8)
    assert (repair_pairs(weight, scales, codes, bits=8, bound=FULL, groups=8).codes == 127).all()
    # Two filters a group run as a matrix product over kernel positions.
    assert (repair_pairs(weight, scales, codes, bits=8, bound=FULL, groups=4).codes < 127).any()


def test_a_bound_that_codes_break_is_our_bug() -> None:
    codes = np.full((2, 4), 65, np.int8)
    codes[0] = 64
    with pytest.raises(InvariantError, match=r"fc: weights 0 and 1 of channel 1 .* positive sums up to 128"):
        check_pairs("fc", codes, bound=FULL, groups=1)


def test_codes_from_somewhere_else_are_repaired_and_those_left_broken_are_refused() -> None:
    x = QuantParams(scale=0.1, zero_point=0, qmin=0, qmax=255, storage="uint8")
    scales, codes = np.array([0.01], np.float32), np.full((1, 8), 100, np.int8)
    repaired = keep_pair_bound(
        "fc", np.ones((1, 8), np.float32), scales, codes, bits=8, groups=1, x=x, limit=32767
    )
    assert not pair_violations(repaired[1], largest_code=255, limit=32767).any()
    assert [d.where for d in repaired[2]] == ["fc"]
    layer = RoundedLayer(name="fc", codes=codes, bias=None, groups=1)
    with pytest.raises(InvariantError, match="fc: weights 0 and 1 of channel 0"):
        settle(layer, scales, x=x, y=None, pair_limit=32767)
    free = settle(layer, scales, x=x, y=None, pair_limit=None)
    assert (free.scales == scales).all() and not free.decisions
