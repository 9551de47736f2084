"""Crafted codes: sums that are exactly what was aimed at, near ties that are ties, windows that land where
they should.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixport.arithmetic import integer
from mixport.validate.crafted.cases import cases_for
from mixport.validate.crafted.craft import Rows, extreme, reach_targets, tie_targets
from mixport.validate.interpreter.interpreter import Interpreter
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network

f32 = np.float32


def rows(
    rng: np.random.Generator,
    *,
    count: int = 64,
    k: int = 30,
    limit: int = 7,
    low: int = 0,
    high: int = 15,
    zero: int = 0,
) -> Rows:
    return Rows(
        weights=rng.integers(-limit, limit + 1, (count, k)),
        bias=rng.integers(-50, 50, count),
        multiplier=np.full(count, 0.043, f32),
        low=low,
        high=high,
        zero_point=zero,
    )


@given(limit=st.integers(1, 127), zero=st.integers(0, 255), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_reached_sums_are_the_targets_and_codes_stay_in_range(limit: int, zero: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = rows(rng, limit=limit, high=255, zero=zero)
    targets = tie_targets(made, zero_point=100, low=0, high=255)
    codes, done = reach_targets(made, targets, rng)
    assert codes.min() >= 0 and codes.max() <= 255
    assert (made.sums(codes)[done, None] == targets[done]).any(axis=1).all()
    assert done.mean() > 0.8


def test_targets_are_nearer_to_ties_than_chance() -> None:
    made = rows(np.random.default_rng(0), k=200)
    targets = tie_targets(made, zero_point=0, low=0, high=255)
    distance = np.abs(targets * np.float64(f32(0.043)) % 1 - 0.5)
    assert distance.max() < 0.043 / 2
    assert np.median(distance) < 0.005


def test_exact_ties_are_found() -> None:
    made = rows(np.random.default_rng(0), k=100)
    made = Rows(**{**made.__dict__, "multiplier": np.full(64, 0.125, f32)})
    codes, done = reach_targets(
        made, tie_targets(made, zero_point=0, low=0, high=255), np.random.default_rng(1)
    )
    assert done.all()
    assert (made.sums(codes) * 0.125 % 1 == 0.5).all()


def test_even_weights_never_claim_an_odd_sum() -> None:
    rng = np.random.default_rng(3)
    made = rows(rng)
    made = Rows(**{**made.__dict__, "weights": made.weights * 2, "bias": made.bias * 0})
    targets = np.full((64, 1), 7)
    _, done = reach_targets(made, targets, rng)
    assert not done.any()


def test_extremes_bound_every_sum() -> None:
    rng = np.random.default_rng(5)
    made = rows(rng, low=3, high=200, zero=120)
    first, last = made.reach()
    sums = made.sums(rng.integers(3, 201, made.weights.shape))
    assert (first <= sums).all() and (sums <= last).all()
    assert (made.sums(extreme(made, largest=True)) == last).all()


@pytest.mark.parametrize(
    "options",
    [
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 2, 1, 0], "strides": [2, 3]},
        {"pads": [3, 3, 3, 3], "dilations": [3, 2], "strides": [2, 2]},
        {"group": 2},
        {"group": 6},
    ],
    ids=str,
)
def test_windows_of_a_convolution_hit_ties_and_both_ends(options: dict[str, Any]) -> None:
    b = QdqBuilder(shape=("N", 6, 9, 9))
    b.quantise("input", "x", 0.5, 40, clip=(30, 60))
    scale = np.full(12, 0.5, f32)
    w = b.weight(b.rng.integers(-7, 8, (12, 6 // options.get("group", 1), 3, 3)), scale)
    conv = b.node("Conv", [b.dequantise("x"), w], **options)
    interpreter = Interpreter(b.build(b.qdq(conv, "y", 2.0, 128)))
    unit = interpreter.units[0]
    assert unit.weight is not None
    found = {case.kind: case.feeds["x"] for case in cases_for(unit, shapes={}, rng=np.random.default_rng(0))}
    assert all(codes.min() >= 30 and codes.max() <= 60 for codes in found.values())
    geometry = {
        "x_zero_point": 40,
        "strides": tuple(options.get("strides", (1, 1))),
        "pads": tuple(options.get("pads", (0, 0, 0, 0))),
        "dilations": tuple(options.get("dilations", (1, 1))),
        "groups": options.get("group", 1),
    }
    # Multiplier 1/8: a sum of 4 mod 8 is a tie. Nearly every window must have one at the crafted place.
    acc = integer.conv_accumulate(found["near-tie"], unit.weight, **geometry)
    assert (acc % 8 == 4).any(axis=(1, 2, 3)).mean() > 0.95
    reached = integer.conv_accumulate(found["saturation"], unit.weight, **geometry)
    flat = unit.weight.reshape(12, -1)
    largest = np.where(flat > 0, flat * 20, flat * -10).sum(axis=1)
    smallest = np.where(flat > 0, flat * -10, flat * 20).sum(axis=1)
    assert (reached.max(axis=(0, 2, 3)) >= largest).all()
    assert (reached.min(axis=(0, 2, 3)) <= smallest).all()


def test_all_codes_and_all_pairs_cover_the_ranges() -> None:
    interpreter = Interpreter(build_network().build("head_sum"))
    cases = {
        unit.kind: cases_for(unit, shapes={}, rng=np.random.default_rng(0)) for unit in interpreter.units
    }
    assert cases["requantise"][0].feeds["join"].tolist() == [list(range(256))]
    pairs = cases["add"][0].feeds
    assert (
        len(set(zip(pairs["branch"].ravel().tolist(), pairs["stem"].ravel().tolist(), strict=True))) == 65536
    )


def test_work_is_capped() -> None:
    b = QdqBuilder(shape=("N", 64, 9, 9))
    b.quantise("input", "x", 0.5, 40)
    conv = b.layer("Conv", "x", (700, 64, 3, 3), name="wide", pads=[1, 1, 1, 1])
    unit = Interpreter(b.build(b.qdq(conv, "y", 2.0, 128))).units[0]
    assert (
        sum(len(case.feeds["x"]) for case in cases_for(unit, shapes={}, rng=np.random.default_rng(0))) <= 260
    )


def test_a_depthwise_layer_crafts_all_its_channels_in_few_windows() -> None:
    b = QdqBuilder(shape=("N", 1024, 9, 9))
    b.quantise("input", "x", 0.5, 40)
    conv = b.layer("Conv", "x", (1024, 1, 3, 3), name="deep", group=1024, pads=[1, 1, 1, 1])
    unit = Interpreter(b.build(b.qdq(conv, "y", 2.0, 128))).units[0]
    found = {case.kind: case.feeds["x"] for case in cases_for(unit, shapes={}, rng=np.random.default_rng(0))}
    assert {kind: len(codes) for kind, codes in found.items()} == {
        "near-tie": 8,
        "saturation": 18,
        "random": 8,
    }
