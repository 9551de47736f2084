"""Thresholds against rational arithmetic, and the proof by thresholds against every sum."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixport.arithmetic import integer
from mixport.arithmetic.requantisation import Requantisation, exact_thresholds, wrong_thresholds


def exact_code(acc: int, rule: Requantisation, channel: int) -> int:
    """Round half to even of the rational number: Python's own, of Fractions."""
    value = (
        acc
        * Fraction(float(rule.x_scale))
        * Fraction(float(rule.w_scale[channel]))
        / Fraction(float(rule.y_scale))
    )
    return min(max(round(value) + rule.zero_point, rule.qmin), rule.qmax)


def scale() -> st.SearchStrategy[float]:
    """Float32 scales: any, and those with few bits, which make ties."""
    anything = st.floats(2.0**-14, 1.0, width=32)
    short = st.builds(lambda m, e: m * 2.0**e, st.integers(1, 12), st.integers(-12, -4))
    return st.one_of(anything, short)


@given(
    x=scale(),
    w=st.lists(scale(), min_size=1, max_size=3),
    y=scale(),
    zero_point=st.integers(0, 15),
    centre=st.integers(0, 14),
)
@settings(max_examples=150, deadline=None)
def test_thresholds_and_verdict_equal_enumeration(
    x: float, w: list[float], y: float, zero_point: int, centre: int
) -> None:
    rule = Requantisation(
        x_scale=x, w_scale=np.array(w, np.float32), y_scale=y, zero_point=zero_point, qmin=0, qmax=15
    )
    thresholds = exact_thresholds(rule)
    for c in range(len(w)):
        for step, threshold in zip(rule.steps, thresholds[c], strict=True):
            above = int(step) + 1 + zero_point
            assert exact_code(int(threshold), rule, c) >= above > exact_code(int(threshold) - 1, rule, c)
    # A window around one threshold, so that the sums looked at do step through codes.
    middle = int(np.clip(thresholds[0, centre], -(2**31) + 99, 2**31 - 99))
    sums = np.arange(middle - 40, middle + 41)
    low, high = np.full(len(w), sums[0]), np.full(len(w), sums[-1])
    got = integer.requantise(
        np.broadcast_to(sums, (len(w), 81)),
        multiplier=rule.multiplier[:, None],
        zero_point=zero_point,
        qmin=0,
        qmax=15,
    )
    expected = np.array([[exact_code(int(s), rule, c) for s in sums] for c in range(len(w))])
    assert ((wrong_thresholds(rule, low=low, high=high) > 0) == (got != expected).any(1)).all()


def test_a_tie_that_float32_makes_is_found() -> None:
    # acc * R lies just above 2.5, closer than float32 can tell: the runtime sees the tie and rounds to the
    # even 2.
    w = np.float32(2.5 / 16777215)
    found = None
    for _ in range(64):
        rule = Requantisation(x_scale=1.0, w_scale=np.array([w]), y_scale=1.0, zero_point=0, qmin=0, qmax=255)
        if wrong_thresholds(rule, low=np.array([0]), high=np.array([2**24]))[0]:
            found = rule
            break
        w = np.nextafter(w, np.float32(1))
    assert found is not None
    sums = np.concatenate([exact_thresholds(found)[0] + d for d in (-1, 0)])
    sums = sums[sums <= 2**24]
    runtime = integer.requantise(sums, multiplier=found.multiplier, zero_point=0, qmin=0, qmax=255)
    assert any(int(r) != exact_code(int(s), found, 0) for s, r in zip(sums, runtime, strict=True))
    # The same thresholds out of reach: nothing wrong.
    assert wrong_thresholds(found, low=np.array([0]), high=np.array([1000]))[0] == 0


@pytest.mark.parametrize("exponent", [-6, -10, -13])
def test_powers_of_two_are_always_exact(exponent: int) -> None:
    rule = Requantisation(
        x_scale=0.5,
        w_scale=np.full(64, 2.0**exponent, np.float32),
        y_scale=0.25,
        zero_point=128,
        qmin=0,
        qmax=255,
    )
    reach = np.full(64, 2**24)
    assert not wrong_thresholds(rule, low=-reach, high=reach).any()
