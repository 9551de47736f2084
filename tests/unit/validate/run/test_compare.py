"""Comparison: counts, the first divergence in graph order, and what cannot be compared."""

from __future__ import annotations

import numpy as np

from mixport.validate.run.compare import Comparison, compare, join


def run(expected: dict[str, np.ndarray], got: dict[str, np.ndarray], *, offset: int = 0) -> Comparison:
    return compare(
        expected, got, order=["a", "b", "output"], executor="other", inputs="images", offset=offset
    )


def test_equal_tensors() -> None:
    a = np.arange(6, dtype=np.uint8)
    assert run({"a": a, "b": a}, {"a": a.copy(), "b": a.copy()}) == Comparison(
        names=frozenset("ab"), values=12
    )


def test_the_first_divergence_is_in_graph_order() -> None:
    a = np.zeros((2, 3), np.uint8)
    wrong = a.copy()
    wrong[1, 2] = 1
    later = a.copy()
    later[0, 0] = 9
    found = run({"b": a, "a": a}, {"b": later, "a": wrong})
    assert found.mismatches == 2 and found.first is not None
    assert (found.first.site, found.first.index, found.first.expected, found.first.got) == (
        "a",
        (1, 2),
        0.0,
        1.0,
    )


def test_the_offset_counts_images() -> None:
    a = np.zeros((2, 3), np.uint8)
    found = run({"a": a}, {"a": a + 1}, offset=32)
    assert found.first is not None and found.first.index == (32, 0)


def test_a_missing_tensor_and_another_shape_differ_wholly() -> None:
    a = np.zeros((2, 3), np.uint8)
    assert run({"a": a}, {}).mismatches == 6
    assert run({"a": a}, {"a": a.reshape(3, 2)}).mismatches == 6
    assert run({"a": a}, {"a": a[:1]}).first is not None


def test_other_types_may_hold_the_same_codes() -> None:
    a = np.array([0, 200], np.uint8)
    assert run({"a": a}, {"a": a.astype(np.float32)}).mismatches == 0
    assert run({"a": a}, {"a": np.array([0, 200.5])}).mismatches == 1


def test_wrapping_does_not_hide_a_difference() -> None:
    assert run({"a": np.array([255], np.uint8)}, {"a": np.array([-1], np.int8)}).mismatches == 1


def test_floats_compare_bit_for_bit_but_nan_equals_nan() -> None:
    a = np.array([1.0, np.nan, np.inf], np.float32)
    assert run({"output": a}, {"output": a.copy()}).mismatches == 0
    assert run({"output": a}, {"output": np.nextafter(a, np.float32(0))}).mismatches == 2


def test_join_adds_and_keeps_the_first() -> None:
    a = np.zeros(3, np.uint8)
    first, second = run({"a": a}, {"a": a + 1}), run({"b": a}, {"b": a + 2})
    total = join(first, second)
    assert (total.tensors, total.values, total.mismatches) == (2, 6, 6)
    assert total.first == first.first
    assert join() == Comparison()
