"""Static bounds: never below what can be reached, and reached where that can be enumerated."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixport.proof.bounds import as_proofs, layer_bound, product_bound

Weights = list[list[int]]


@given(
    weights=st.lists(st.lists(st.integers(-128, 127), min_size=3, max_size=3), min_size=1, max_size=3),
    low=st.integers(0, 3),
    span=st.integers(1, 3),
    zero_point=st.integers(0, 8),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_bounds_equal_enumeration(weights: Weights, low: int, span: int, zero_point: int, data: st.DataObject) -> None:
    w = np.array(weights)
    bias = np.array(data.draw(st.lists(st.integers(-500, 500), min_size=len(w), max_size=len(w))))
    bound = layer_bound(site="s", op="Conv", weights=w, bias=bias, low=low, high=low + span, zero_point=zero_point)
    # A tap may hold any code, or padding, which is the zero point.
    values = sorted({*range(low, low + span + 1), zero_point})
    sums = np.array([w @ (np.array(codes) - zero_point) + bias for codes in itertools.product(values, repeat=3)])
    assert (bound.smallest, bound.largest) == (sums.min(), sums.max())
    raw = [a * x + b * y for row in weights for x, y in itertools.pairwise(row) for a in range(low, low + span + 1)
           for b in range(low, low + span + 1)]  # fmt: skip
    assert bound.pair is not None and bound.any_pair is not None
    assert bound.pair >= max(map(abs, raw)) and bound.any_pair >= bound.pair
    single = max(abs(a * x) for row in weights for x in row for a in (low, low + span))
    assert bound.pair == max(max(map(abs, raw)), single)


@pytest.mark.parametrize(
    ("weight_bits", "activation_bits", "safe"), [(8, 8, False), (7, 8, True), (4, 8, True), (2, 4, True), (8, 4, True), (8, 7, True)]
)
def test_pair_saturation_follows_the_widths(weight_bits: int, activation_bits: int, safe: bool) -> None:
    limit = 2 ** (weight_bits - 1) - 1
    w = np.full((4, 8, 3, 3), limit)
    bound = layer_bound(site="s", op="Conv", weights=w, bias=None, low=0, high=2**activation_bits - 1, zero_point=0)
    assert bound.any_pair == 2 * limit * (2**activation_bits - 1)
    assert bound.pair_safe is safe


def test_alternating_signs_are_safe_where_magnitudes_are_not() -> None:
    w = np.array([[127, -127] * 4])
    bound = layer_bound(site="s", op="Gemm", weights=w, bias=None, low=0, high=255, zero_point=128)
    assert bound.pair == 127 * 255 <= 32767
    assert bound.any_pair == 2 * 127 * 255 and not bound.pair_safe


def test_pairs_run_along_channels_last() -> None:
    # Channels hold opposite signs, neighbouring pixels the same: only the layout decides which are neighbours.
    w = np.zeros((1, 2, 1, 4), np.int64)
    w[0, 0], w[0, 1] = 127, -127
    assert layer_bound(site="s", op="Conv", weights=w, bias=None, low=0, high=255, zero_point=0).pair == 127 * 255


@pytest.mark.parametrize(("bias", "fits", "exact"), [(0, True, True), (2**24, True, False), (2**31 - 1, False, False)])
def test_limits(bias: int, fits: bool, exact: bool) -> None:
    bound = layer_bound(site="s", op="Gemm", weights=np.array([[1]]), bias=np.array([bias]), low=0, high=1, zero_point=0)
    assert (bound.fits_int32, bound.exact_in_float32, bound.largest) == (fits, exact, bias + 1)


def test_products_of_two_code_tensors() -> None:
    bound = product_bound(site="s", op="MatMul", products=64, left=(0, 255, 128), right=(0, 255, 100))
    assert (bound.smallest, bound.largest) == (64 * -128 * 155, 64 * 127 * 155)
    assert bound.pair_safe and bound.any_pair is None
    signed = product_bound(site="s", op="MatMul", products=64, left=(0, 255, 0), right=(-128, 127, 0))
    assert not signed.pair_safe and signed.any_pair == 2 * 255 * 128


def test_proofs_are_plain_data() -> None:
    good = layer_bound(site="good", op="Conv", weights=np.array([[1, 2]]), bias=None, low=0, high=15, zero_point=0)
    bad = layer_bound(site="bad", op="Conv", weights=np.array([[127, 127]]), bias=None, low=0, high=255, zero_point=0)
    proofs = json.loads(json.dumps(as_proofs([good, bad])))
    assert proofs["int32_accumulators"]["holds"] and proofs["int32_accumulators"]["largest_site"] == "bad"
    assert proofs["int16_pairs"] == {"holds": False, "sites": 2, "exceptions": ["bad"], "limit": 32767}
    assert [site["site"] for site in proofs["sites"]] == ["good", "bad"]
    assert as_proofs([])["int32_accumulators"]["holds"] is True


def test_impossible_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match=r"codes \[3, 1\]"):
        layer_bound(site="s", op="Conv", weights=np.array([[1]]), bias=None, low=3, high=1, zero_point=0)
