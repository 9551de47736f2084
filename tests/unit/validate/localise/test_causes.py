"""Causes told apart: each from the value that it would give, and the likelier one first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mixport.validate.interpreter.fused_units import CodeInput, FusedUnit
from mixport.validate.interpreter.graph import Node
from mixport.validate.interpreter.values import Saturation
from mixport.validate.localise.causes import (
    NEAR_TIE,
    Finding,
    find_cause,
    float_operators,
    fused_add,
    refused,
    wrong_shape,
)
from mixport.validate.localise.element import Element

UINT8 = np.dtype(np.uint8)
SATURATION = Saturation(scale=np.float32(1), zero_point=0, low=0, high=255, dtype=UINT8)
X = CodeInput(name="x", low=0, high=255, dtype=UINT8, scale=np.float32(1), zero_point=0)
UNIT = FusedUnit(
    kind="conv",
    node=Node(index=0, name="n", op="Conv", inputs=(), outputs=("y",)),
    inputs=(X,),
    weight=None,
    weight_scale=None,
    bias=None,
    saturation=SATURATION,
    low=0,
    high=255,
    output="y",
    nodes=(),
)


def cause(
    element: Element, *, expected: float, got: float, unit: FusedUnit = UNIT, tensors: Any = None
) -> Finding:
    return find_cause(unit, element, expected=expected, got=got, tensors=tensors, index=(0, 1))


def element(exact: float | None = None, **fields: Any) -> Element:
    return Element(operands=(), exact=exact, **fields)


def row(codes: list[int], weights: list[int], *, scale: float, rest: int = 0) -> Element:
    c, w = np.asarray(codes, np.int64), np.asarray(weights, np.int64)
    total = int((c * w).sum()) + rest
    return element(total * scale, accumulator=total, codes=c, weights=w, rest=rest)


@pytest.mark.parametrize(
    ("found", "name", "part"),
    [
        (refused("opset 99"), "refused", "the runtime refuses the model: opset 99"),
        (wrong_shape(640, 0), "shape", "the tensor has 0 values instead of 640"),
        (wrong_shape(640, 640), "shape", "its 640 values come in another shape"),
        (float_operators(("Softmax s",), difference=2.0), "float-operators", "(Softmax s), off by 2;"),
        (float_operators((), difference=2.0), "other-data", "no arithmetic stands between"),
        (fused_add("far"), "fused-multiply-add", "in an add, far: a fused"),
        (fused_add(""), "fused-multiply-add", "in an add: a fused"),
    ],
)
def test_findings_without_an_element(found: Finding, name: str, part: str) -> None:
    assert found.cause == name and part in found.explanation and found.repair


def test_at_most_six_operators_are_listed() -> None:
    found = float_operators(tuple(f"Mul {i}" for i in range(9)), difference=1.0)
    assert "(Mul 0, Mul 1, Mul 2, Mul 3, Mul 4, Mul 5)" in found.explanation


@pytest.mark.parametrize(
    ("exact", "unfused", "name"),
    [
        (7.5, None, "tie"),
        (7.5, 7.0, "unfused-float"),
        (7.5, 8.0, "tie"),
        (7.5 + 0.9 * NEAR_TIE, 7.0, "unfused-float"),
        (7.5 + 1.1 * NEAR_TIE, 7.0, "other-arithmetic"),
        (7.9, None, "other-arithmetic"),
        (None, None, "other-arithmetic"),
    ],
)
def test_one_code_of_difference_is_judged_by_its_distance_from_a_tie(
    exact: float | None, unfused: float | None, name: str
) -> None:
    found = cause(element(exact, unfused=unfused), expected=8, got=7)
    assert found.cause == name
    assert (f"{exact:.6f} lies" if exact is not None else "position unknown") in found.explanation


def test_one_code_in_an_add_is_a_fused_multiply_add() -> None:
    found = cause(element(7.5), expected=8, got=7, unit=replace(UNIT, kind="add"))
    assert found.cause == "fused-multiply-add" and "7.500000 lies 0.0e+00" in found.explanation


def test_several_codes_are_other_data_and_floats_are_unfused() -> None:
    found = cause(element(7.5), expected=8, got=17)
    assert found.cause == "other-data" and "a difference of 9 codes is no rounding" in found.explanation
    floats = replace(UNIT, saturation=None)
    assert cause(element(7.5), expected=8, got=7, unit=floats).cause == "unfused-float"


def test_a_pair_that_saturates_gives_the_very_value() -> None:
    # 2 * 255 * 127 = 64770 saturates at 32767: with the rest, 96 and 64 at a scale of 1 / 512.
    full = row([255, 255, 0], [127, 127, 5], scale=1 / 512, rest=-16000)
    found = cause(full, expected=95, got=33)
    assert found.cause == "pair-saturation"
    assert "sum to 64770, beyond int16; saturating them gives the very value" in found.explanation
    other = cause(full, expected=95, got=40)
    assert other.cause == "pair-saturation" and "very value" not in other.explanation
    # Signed codes, or pairs within int16, never saturate there.
    signed = replace(UNIT, inputs=(replace(X, dtype=np.dtype(np.int8)),))
    assert cause(full, expected=95, got=33, unit=signed).cause == "other-data"
    assert cause(row([255, 255], [64, 64], scale=1 / 512), expected=64, got=33).cause == "other-data"


def test_a_tie_explains_more_than_a_pair_that_only_might_saturate() -> None:
    tie = row([255, 255], [127, 127], scale=1 / 512, rest=256 - 64770 + 512 * 60)
    assert tie.exact == 60.5
    assert cause(tie, expected=60, got=61).cause == "tie"
    assert cause(tie, expected=60, got=59).cause == "tie"


def test_a_swapped_channel_is_recognised_by_all_its_values() -> None:
    expected = np.asarray([[1, 2, 3], [4, 5, 6]])
    swapped = expected[:, [0, 2, 1]]
    found = cause(element(3.0), expected=2, got=3, tensors=(expected, swapped))
    assert found.cause == "swapped-channel"
    assert found.explanation == "channel 1 holds what channel 2 should hold"
    flat = np.full((2, 3), 7)
    assert cause(element(3.0), expected=2, got=7, tensors=(expected, flat)).cause == "other-data"
    images = np.arange(24).reshape(2, 3, 2, 2)
    found = find_cause(
        UNIT, element(3.0), expected=4, got=8, tensors=(images, images[:, [0, 2, 1]]), index=(0, 1, 0, 0)
    )
    assert found.explanation == "channel 1 holds what channel 2 should hold"
