"""Scales on the grid of a target: nearest in the exponent, never below where that is asked for."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mixport.arithmetic.scale_grid import ANY_SCALE, ScaleGrid

POWERS = ScaleGrid(power_of_two=True)
ONE_POWER = ScaleGrid(power_of_two=True, per_tensor=True)
ONE = ScaleGrid(per_tensor=True)
GRIDS = [ANY_SCALE, POWERS, ONE, ONE_POWER]
#: float32 holds each of them, and the power of two above each.
SCALES = st.floats(2.0**-126, 2.0**127, width=32)
ROWS = arrays(np.float32, st.integers(1, 5), elements=SCALES)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("up", [False, True])
@given(ROWS)
def test_what_was_snapped_stays(grid: ScaleGrid, up: bool, scales: np.ndarray) -> None:
    once = grid.snap(scales, up=up)
    assert once.dtype == np.float32 and once.shape == scales.shape
    assert grid.snap(once, up=up).tolist() == once.tolist()
    assert grid.snap(once, up=not up).tolist() == once.tolist()
    assert grid.holds(once)


@given(SCALES)
def test_the_nearest_power_is_within_half_an_exponent(scale: float) -> None:
    found = Fraction(float(POWERS.snap(scale)))
    # Squares, so that the root of two in between is exact.
    assert Fraction(1, 2) < (found / Fraction(scale)) ** 2 < 2


@given(SCALES)
def test_up_is_the_smallest_power_that_is_not_below(scale: float) -> None:
    found = float(POWERS.snap(scale, up=True))
    assert found / 2 < scale <= found


@pytest.mark.parametrize("exponent", [*range(-126, 128, 23), -1, 0, 1, 127])
def test_neighbours_of_a_power_go_to_it_or_to_the_next_one(exponent: int) -> None:
    power = np.float32(2.0**exponent)
    below, above = np.nextafter(power, np.float32(0)), np.nextafter(power, np.float32(np.inf))
    assert POWERS.snap([below, power, above]).tolist() == [power] * 3
    assert POWERS.snap([below, power], up=True).tolist() == [power] * 2
    if exponent < 127:
        assert float(POWERS.snap(above, up=True)) == 2.0 ** (exponent + 1)
    assert [POWERS.holds(value) for value in (below, power, above)] == [False, True, False]


def test_between_two_powers_the_root_of_two_decides() -> None:
    assert POWERS.snap([1.41, 1.42, 3.0]).tolist() == [1.0, 2.0, 4.0]


@given(ROWS)
def test_any_scale_is_left_as_float32_has_it(scales: np.ndarray) -> None:
    assert ANY_SCALE.snap(scales, up=True).tolist() == scales.tolist()
    assert ANY_SCALE.snap_weights(scales).tolist() == scales.tolist()
    assert ANY_SCALE.holds(scales) and ANY_SCALE.holds_weights(scales)


@pytest.mark.parametrize("grid", GRIDS)
@given(ROWS)
def test_weight_scales_are_allowed_no_smaller_and_as_small_as_may_be(
    grid: ScaleGrid, scales: np.ndarray
) -> None:
    found = grid.snap_weights(scales)
    assert found.dtype == np.float32 and (found >= scales).all()
    assert grid.holds_weights(found)
    assert grid.snap_weights(found).tolist() == found.tolist()
    wanted = [2.0 ** math.ceil(math.log2(s)) if grid.power_of_two else float(s) for s in scales]
    assert found.tolist() == ([max(wanted)] * len(scales) if grid.per_tensor else wanted)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_weight_without_channels_has_no_scales(grid: ScaleGrid) -> None:
    found = grid.snap_weights(np.empty(0, np.float32))
    assert found.tolist() == [] and grid.holds_weights(found)


def test_one_scale_of_a_weight_is_the_largest() -> None:
    assert ONE.snap_weights([0.1, 0.75, 0.3]).tolist() == [0.75] * 3
    assert ONE_POWER.snap_weights([0.1, 0.75, 0.3]).tolist() == [1.0] * 3
    assert POWERS.snap_weights([0.1, 0.75, 0.3]).tolist() == [0.125, 1.0, 0.5]


def test_each_rule_alone_can_refuse() -> None:
    same, powers = [0.75, 0.75], [0.5, 1.0]
    assert [grid.holds_weights(same) for grid in GRIDS] == [True, False, True, False]
    assert [grid.holds_weights(powers) for grid in GRIDS] == [True, True, False, False]
    assert [grid.holds(powers) for grid in GRIDS] == [True] * 4  # activations: each has its own


def test_scales_move_freely_only_where_any_is_allowed() -> None:
    assert [grid.moves_freely for grid in GRIDS] == [True, False, False, False]


def test_up_is_never_below_for_doubles_either() -> None:
    wanted = np.array([0.7, 2.0**100 * (1 + 2.0**-50), 1e-30])
    for grid in (ScaleGrid(), ScaleGrid(power_of_two=True)):
        found = grid.snap(wanted, up=True)
        assert (found.astype(np.float64) >= wanted).all()
        np.testing.assert_array_equal(grid.snap(found, up=True), found)


def test_the_largest_power_of_two_is_the_last() -> None:
    assert ScaleGrid(power_of_two=True).snap(3e38, up=True) == np.float32(2.0**127)
