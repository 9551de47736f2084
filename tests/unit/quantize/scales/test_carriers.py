"""Carriers that meet: whole ratios of one base scale, shared zero points, and the best of what is allowed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from mixport.arithmetic.quant_params import QuantParams
from mixport.arithmetic.scale_grid import ScaleGrid
from mixport.quantize.scales.carriers import group_params
from mixport.quantize.scales.histograms import histogram_of
from mixport.quantize.scales.ranges import P, ScaleRule, short_mantissa
from mixport.quantize.sites.site_plan import ScaleGroup, SitePlan

ANY = ScaleRule()
POWERS = ScaleRule(grid=ScaleGrid(power_of_two=True))
Bounds = tuple[float, float | None] | None


def params_of(
    values: dict[str, Tensor],
    *,
    leaves: str = "",
    equal: tuple[tuple[str, ...], ...] = (),
    bounds: Bounds = None,
    rule: ScaleRule = ANY,
    bits: int = 8,
) -> dict[str, QuantParams]:
    """Parameters of one group; each name is one letter."""
    node = fx.Graph().placeholder("x")
    sites = {
        name: SitePlan(
            name=name,
            tensor=node,
            source=node,
            op="conv2d",
            role="carrier",
            bits=bits,
            bounds=bounds,
            base=None,
            consumers=(),
            chain=(),
            reason="",
        )
        for name in values
    }
    group = ScaleGroup(members=tuple(values), leaves=frozenset(leaves), equal_zero_point=equal)
    histograms = {name: histogram_of(value) for name, value in values.items()}
    return group_params(group, sites, histograms, rule=rule)


def spread(size: float, *, seed: int = 0, shift: float = 0.0) -> Tensor:
    """Even values in [shift - size, shift + size]."""
    return (torch.rand(4000, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * size + shift


@settings(max_examples=5, deadline=None)  # each searches over 48 base scales
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=4), st.booleans())
def test_ratios_of_leaves_are_whole_and_the_base_has_a_short_mantissa(
    exponents: list[float], powers: bool
) -> None:
    values = {name: spread(2.0**e) for name, e in zip("abcd", exponents, strict=False)}
    found = params_of(values, leaves="bcd", rule=POWERS if powers else ANY)
    base = found["a"].scale
    assert base == short_mantissa(base)
    ratios = {1.0, 2.0, 4.0} if powers else {1.0, 2.0, 3.0, 4.0}
    assert {one.scale / base for one in found.values()} <= ratios
    assert not powers or math.frexp(base)[0] == 0.5
    # Sums of codes need no rounding: each product is exact in float32 too.
    for one in found.values():
        for code in (-255, -1, 1, 255):
            assert float(np.float32(one.scale) * np.float32(code)) == one.scale * code


@pytest.mark.parametrize(("size", "ratio"), [(1.0, 1), (2.0, 2), (3.0, 3), (4.0, 4), (0.25, 1)])
def test_a_leaf_takes_the_ratio_that_fits_its_range(size: float, ratio: int) -> None:
    found = params_of({"a": spread(1.0), "b": spread(size, seed=1), "c": spread(1.0, seed=2)}, leaves="b")
    assert found["a"].scale == found["c"].scale
    assert found["b"].scale == ratio * found["a"].scale


def test_a_member_that_is_no_leaf_has_the_base_scale_however_wide() -> None:
    found = params_of({"a": spread(1.0), "b": spread(4.0, seed=1)})
    assert found["a"].scale == found["b"].scale


def test_operands_of_a_concat_share_their_zero_point() -> None:
    values = {"a": spread(1.0), "b": spread(1.0, shift=0.5, seed=1), "c": spread(1.0, shift=-0.5, seed=2)}
    apart, tied = params_of(values), params_of(values, equal=(("a", "b"),))
    assert apart["a"].zero_point > apart["b"].zero_point
    assert (tied["a"].scale, tied["a"].zero_point) == (tied["b"].scale, tied["b"].zero_point)
    assert tied["c"].zero_point > tied["a"].zero_point


def test_one_zero_point_for_all_reaches_below_zero_where_one_operand_does() -> None:
    found = params_of({"a": spread(1.0).abs(), "b": spread(1.0, seed=1)}, equal=(("a", "b"),))
    assert found["a"].zero_point == found["b"].zero_point
    assert 100 < found["a"].zero_point < 156


def test_carriers_behind_a_relu_start_at_zero() -> None:
    values = {"a": spread(1.0).relu(), "b": spread(2.0, seed=1).relu()}
    found = params_of(values, leaves="b", bounds=(0.0, None))
    assert [(one.zero_point, one.qmin, one.qmax) for one in found.values()] == [(0, 0, 255)] * 2


def test_an_upper_bound_is_the_largest_code() -> None:
    found = params_of({"a": spread(9.0).clamp(0, 6), "b": spread(1.0, seed=1).relu()}, bounds=(0.0, 0.5))
    scale = found["a"].scale
    assert [one.qmax for one in found.values()] == [round(0.5 / scale)] * 2


def test_a_rule_of_middle_zero_points_leaves_no_choice() -> None:
    found = params_of({"a": spread(1.0).abs(), "b": spread(2.0, seed=1)}, rule=ScaleRule(zero_point="middle"))
    assert [one.zero_point for one in found.values()] == [128, 128]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_fill_the_lowest_values_of_an_unsigned_type(bits: int) -> None:
    for one in params_of({"a": spread(1.0), "b": spread(1.0, seed=1)}, bits=bits).values():
        assert (one.qmin, one.qmax, one.storage) == (0, 2**bits - 1, "uint8")


def test_tensors_that_are_always_zero_have_a_scale_and_say_nothing_about_others() -> None:
    assert all(one.scale > 0 for one in params_of({"a": torch.zeros(8), "b": torch.zeros(8)}).values())


def error_of(values: dict[str, Tensor], found: dict[str, QuantParams]) -> float:
    """Sum over tensors of the L_p error relative to its own power."""
    total = 0.0
    for name, one in found.items():
        x = values[name].double()
        codes = (x / one.scale).round().clamp(one.qmin - one.zero_point, one.qmax - one.zero_point)
        total += float(((codes * one.scale - x).abs() ** P).sum() / (x.abs() ** P).sum())
    return total


def test_the_base_is_nearly_the_best_of_a_fine_search() -> None:
    values = {"a": torch.randn(4000, generator=torch.Generator().manual_seed(3)), "b": spread(2.5, seed=1)}
    found = params_of(values, leaves="b", bits=4)
    best = math.inf
    for base in np.geomspace(0.1, 1.0, 200):
        for ratio in (1, 2, 3, 4):
            one = QuantParams(scale=float(base), zero_point=8, qmin=0, qmax=15, storage="uint8")
            other = QuantParams(scale=float(base * ratio), zero_point=8, qmin=0, qmax=15, storage="uint8")
            best = min(best, error_of(values, {"a": one, "b": other}))
    assert error_of(values, found) <= 1.05 * best
