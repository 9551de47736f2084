"""Proofs of requantisation: both methods, on layers that are exact and on layers that are not."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mixport.arithmetic import integer
from mixport.records.graph_facts import LayerFacts, OutputCodes
from mixport.validate.proof.requantise import prove_requantisation, reach

Make = Any


def by_fractions(layer: LayerFacts) -> int:
    """Sums whose code differs, in Python's own rational arithmetic."""
    assert layer.y is not None
    wrong = 0
    for c, (low, high) in enumerate(zip(*reach(layer), strict=True)):
        scale = layer.w_scale[c if len(layer.w_scale) > 1 else 0]
        exact = Fraction(layer.x_scale) * Fraction(float(scale)) / Fraction(layer.y.scale)
        sums = np.arange(low, high + 1)
        multiplier = integer.conv_multiplier(layer.x_scale, scale, layer.y.scale)
        got = integer.requantise(
            sums, multiplier=multiplier, zero_point=layer.y.zero_point, qmin=layer.y.low, qmax=layer.y.high
        )
        wanted = [
            min(max(round(int(s) * exact) + layer.y.zero_point, layer.y.low), layer.y.high) for s in sums
        ]
        wrong += int((got != np.array(wanted)).sum())
    return wrong


@pytest.fixture
def random_layer(layer: Make) -> Make:
    def make(seed: int, **changes: Any) -> LayerFacts:
        rng = np.random.default_rng(seed)
        fields: dict[str, Any] = {
            "bias": rng.integers(-3000, 3000, 3),
            "left": (0, 15, 2),
            "x_scale": float(np.float32(rng.uniform(0.01, 0.02))),
            "w_scale": rng.uniform(0.004, 0.006, 3).astype(np.float32),
            "y": OutputCodes(
                scale=float(np.float32(rng.uniform(0.001, 0.002))),
                zero_point=int(rng.integers(0, 255)),
                low=0,
                high=255,
            ),
        }
        return layer(rng.integers(-127, 128, (3, 4, 3, 3)), **{**fields, **changes})

    return make


def inexact_seeds(random_layer: Make, count: int) -> list[int]:
    """Seeds of layers that float32 requantises inexactly: one in some dozens."""
    proofs = ((seed, prove_requantisation(random_layer(seed), enumerate_up_to=0)) for seed in range(1000))
    return list(
        itertools.islice((seed for seed, proof in proofs if proof is not None and not proof.exact), count)
    )


def test_enumeration_counts_what_fractions_count(random_layer: Make) -> None:
    seeds = [0, *inexact_seeds(random_layer, 2)]
    assert len(seeds) == 3
    found = [prove_requantisation(random_layer(seed)) for seed in seeds]
    counted = [by_fractions(random_layer(seed)) for seed in seeds]
    assert [one.wrong_sums for one in found if one is not None] == counted
    assert counted[1] > 0 and counted[2] > 0


def test_thresholds_say_the_same_without_computing_every_sum(random_layer: Make) -> None:
    for seed in (0, 1, *inexact_seeds(random_layer, 3)):
        whole, quick = (
            prove_requantisation(random_layer(seed)),
            prove_requantisation(random_layer(seed), enumerate_up_to=0),
        )
        assert whole is not None and quick is not None
        assert (whole.method, quick.method, quick.wrong_sums) == ("enumerated", "thresholds", None)
        assert (whole.sums, whole.exact, whole.wrong_channels) == (
            quick.sums,
            quick.exact,
            quick.wrong_channels,
        )


def test_one_scale_for_all_channels_and_powers_of_two(random_layer: Make) -> None:
    one = random_layer(
        1,
        x_scale=2.0**-6,
        w_scale=np.array([2.0**-7], np.float32),
        y=OutputCodes(scale=2.0**-9, zero_point=1, low=1, high=200),
    )
    proof = prove_requantisation(one)
    assert proof is not None
    assert (proof.exact, proof.wrong_sums, by_fractions(one)) == (True, 0, 0)


def test_a_product_of_two_code_tensors_is_proved_over_its_interval(layer: Make) -> None:
    proof = prove_requantisation(
        layer(products=16, left=(0, 255, 128), right=(0, 255, 100), w_scale=np.array([0.01], np.float32))
    )
    assert proof is not None
    assert proof.sums == 16 * (128 + 127) * 155 + 1


def test_floats_need_no_proof(layer: Make) -> None:
    assert prove_requantisation(layer([[1, 2]], y=None)) is None
