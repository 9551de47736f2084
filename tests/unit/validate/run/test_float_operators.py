"""The bounds within which a float island may differ from float operators evaluated elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from mixport.records.simulation import FloatEvaluation
from mixport.validate.run.float_operators import bound_of, compare_floats

NAMES = ("site", "output")


def evaluation(*values: float, error: float = 0.0) -> FloatEvaluation:
    return FloatEvaluation(values=np.array([values], np.float64), error=error)


@pytest.mark.parametrize(
    ("got", "error", "mismatches"),
    [([10, 20], 0.0, 0), ([11, 19], 0.0, 0), ([12, 20], 0.0, 1), ([12, 18], 0.125, 0), ([13, 20], 0.125, 1)],
    ids=[
        "equal",
        "one step",
        "two steps",
        "two steps where floats are unsure",
        "three steps where floats are unsure",
    ],
)
def test_codes(got: list[int], error: float, mismatches: int) -> None:
    found = compare_floats(
        {"site": evaluation(10.0, 20.0, error=error)},
        {"site": np.array([got], np.uint8)},
        names=NAMES,
        executor="other",
        inputs="images",
    )
    assert (found.values, found.mismatches) == (2, mismatches)


def test_an_output_may_differ_by_the_rounding_of_a_long_sum() -> None:
    wanted = evaluation(1.0, -4096.0)
    assert bound_of("output", wanted) == 1.0
    for distance, mismatches in ((1.0, 0), (1.5, 1)):
        got = {"output": np.array([[1.0, -4096.0 + distance]], np.float32)}
        found = compare_floats(
            {"output": wanted}, got, names=NAMES, executor="other", inputs="images", offset=7
        )
        assert found.mismatches == mismatches
    assert found.first is not None and (found.first.index, found.first.expected) == ((7, 1), -4096.0)


def test_nan_says_nothing_where_it_is_expected_and_differs_where_it_is_not() -> None:
    wanted = {"output": evaluation(np.nan, 1.0)}
    for got, mismatches in (([5.0, 1.0], 0), ([5.0, np.nan], 1)):
        found = compare_floats(
            wanted, {"output": np.array([got], np.float32)}, names=NAMES, executor="other", inputs="images"
        )
        assert found.mismatches == mismatches


def test_another_shape_differs_wholly() -> None:
    found = compare_floats(
        {"site": evaluation(1.0, 2.0)},
        {"site": np.zeros((2, 2))},
        names=NAMES,
        executor="other",
        inputs="images",
    )
    assert found.mismatches == 2
