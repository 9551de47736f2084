"""Tables that are one requantisation: found where they are straight, proved, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixport.arithmetic import integer
from mixport.arithmetic.affine_tables import find_requantisation, is_straight


def codes_of(found: object) -> np.ndarray:
    """DequantizeLinear, then QuantizeLinear, in float32 as the operators compute."""
    source, target = found.source, found.target  # type: ignore[attr-defined]
    values = (np.arange(256) - source.zero_point).astype(np.float32) * np.float32(source.scale)
    return integer.quantise(values, scale=target.scale, zero_point=target.zero_point, qmin=0, qmax=255)


def hard_sigmoid(scale: float, zero_point: int, unit: float) -> np.ndarray:
    x = (np.arange(256) - zero_point) * scale
    return np.clip(np.rint(np.clip(x / 6 + 0.5, 0, 1) / unit), 0, 255).astype(np.uint8)


@settings(max_examples=80, deadline=None)
@given(st.floats(0.003, 0.2), st.integers(0, 255), st.integers(0, 255))
def test_what_is_found_gives_the_table(slope: float, zero_point: int, shift: int) -> None:
    table = np.clip(np.rint((np.arange(256) - zero_point) * slope) + shift, 0, 255).astype(np.uint8)
    found = find_requantisation(table)
    if found is not None:
        np.testing.assert_array_equal(codes_of(found), table)
    # The slope itself is a line through all entries, unless an entry lies on a tie.
    distance = np.abs(np.abs((np.arange(256) - zero_point) * slope % 1) - 0.5)
    if table.min() < table.max() and distance.min() > 1e-9:
        assert is_straight(table)


def test_gates_of_narrow_inputs_are_found() -> None:
    rng = np.random.default_rng(0)
    gates = [hard_sigmoid(rng.uniform(0.003, 0.03), int(rng.integers(20, 236)), 1 / 255) for _ in range(100)]
    found = [find_requantisation(gate) for gate in gates]
    # Where a line has to pass within 1/500 of a code, no pair of integer zero points may do; another scale
    # then does.
    assert sum(one is not None for one in found) >= 90
    for gate, one in zip(gates, found, strict=True):
        if one is not None:
            np.testing.assert_array_equal(codes_of(one), gate)


def test_both_ends_may_saturate() -> None:
    gate = hard_sigmoid(0.0517, 128, 1 / 255)
    assert (gate[0], gate[255]) == (0, 255)
    found = find_requantisation(gate)
    assert found is not None
    np.testing.assert_array_equal(codes_of(found), gate)


@pytest.mark.parametrize(
    "table",
    [
        255 / (1 + np.exp(-(np.arange(256) - 128) * 0.03)),  # bent
        np.arange(255, -1, -1),  # falls
        np.full(256, 7),  # level
        np.clip(np.arange(256), 0, 180) // 2,  # one bend that is no saturation
        np.abs(np.arange(256) - 128),
    ],
)
def test_other_tables_are_none(table: np.ndarray) -> None:
    entries = np.rint(table).astype(np.uint8)
    assert find_requantisation(entries) is None
    assert not is_straight(entries)


def test_ties_rounded_to_even_are_no_proof() -> None:
    # Half of each odd distance is a tie: the table is what QuantizeLinear gives, and no line comes clear of
    # the boundaries.
    table = np.clip(np.rint((np.arange(256) - 100) * 0.5) + 60, 0, 255).astype(np.uint8)
    assert find_requantisation(table) is None
