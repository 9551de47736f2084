"""Products of codes: where a fused multiplication and addition would give another code, the proof must not
hold.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mixport.arithmetic import integer
from mixport.arithmetic.multiplication import is_product_proved, moved_scales
from mixport.arithmetic.quant_params import QuantParams


def params(scale: float, zero_point: int) -> QuantParams:
    return QuantParams(
        scale=float(np.float32(scale)), zero_point=zero_point, qmin=0, qmax=255, storage="uint8"
    )


def codes_all_ways(a: QuantParams, b: QuantParams, y: QuantParams) -> tuple[np.ndarray, ...]:
    """Two roundings, as mixport.arithmetic.integer has it; one, as a fused multiply-add has it; one after the
    other, as under WASM.
    """
    left, right = np.arange(256)[:, None], np.arange(256)[None, :]
    multiplier = integer.conv_multiplier(a.scale, b.scale, y.scale)
    twice = integer.multiply(
        left,
        right,
        a_zero_point=a.zero_point,
        b_zero_point=b.zero_point,
        multiplier=multiplier,
        zero_point=y.zero_point,
        qmin=0,
        qmax=255,
    )
    products = (left - a.zero_point).astype(np.float64) * (right - b.zero_point)
    once = np.clip(np.rint((products * float(multiplier) + y.zero_point).astype(np.float32)), 0, 255)
    reals = [
        ((codes - one.zero_point).astype(np.float32) * np.float32(one.scale))
        for codes, one in ((left, a), (right, b))
    ]
    single = np.rint(reals[0] * reals[1] / np.float32(y.scale) + np.float32(y.zero_point))
    return twice, once.astype(np.int64), np.clip(single, 0, 255).astype(np.int64)


def agree(found: tuple[np.ndarray, ...]) -> bool:
    return all(np.array_equal(found[0], other) for other in found[1:])


def test_a_tie_is_no_proof() -> None:
    # A product of 1 is half a step.
    assert not is_product_proved(params(1.0, 0), params(1.0, 0), params(2.0, 0))
    assert is_product_proved(params(1.0, 0), params(1.0, 0), params(3.0, 0))


def test_scales_near_a_tie_are_found_and_moved() -> None:
    """Scales for which the orders of operations give different codes."""
    rng = np.random.default_rng(5)
    seen = 0
    for _ in range(200):
        a, b = params(rng.uniform(0.01, 0.1), int(rng.integers(256))), params(1 / 255, int(rng.integers(4)))
        y = params(rng.uniform(0.5, 1.0) * a.scale, int(rng.integers(1, 255)))
        if agree(codes_all_ways(a, b, y)):
            continue
        seen += 1
        assert not is_product_proved(a, b, y)
        moved = next(
            params(scale, y.zero_point)
            for scale in moved_scales(y.scale)
            if is_product_proved(a, b, params(scale, y.zero_point))
        )
        assert abs(moved.scale / y.scale - 1) < 5e-4
        assert agree(codes_all_ways(a, b, moved))
    assert seen >= 3


@settings(max_examples=40, deadline=None)
@given(
    scales=st.tuples(*[st.floats(1e-3, 1.0)] * 3),
    zeros=st.tuples(*[st.integers(0, 255)] * 3),
)
def test_what_is_proved_is_the_same_in_any_order(
    scales: tuple[float, float, float], zeros: tuple[int, int, int]
) -> None:
    a, b, y = (params(scale, zero) for scale, zero in zip(scales, zeros, strict=True))
    if is_product_proved(a, b, y):
        assert agree(codes_all_ways(a, b, y))


def test_neighbouring_scales_come_nearest_first_and_once() -> None:
    start = float(np.float32(0.1))
    scales = list(moved_scales(start))
    up, down = (np.nextafter(np.float32(0.1), np.float32(towards)) for towards in (1, 0))
    assert scales[:3] == [start, up, down]
    assert len(set(scales)) == len(scales)
    steps = (np.asarray(scales, np.float32).view(np.int32) - np.float32(0.1).view(np.int32)).tolist()
    assert [abs(step) for step in steps] == sorted(abs(step) for step in steps)
    assert max(steps) == -min(steps) <= 4096
