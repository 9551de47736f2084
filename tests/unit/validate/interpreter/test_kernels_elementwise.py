"""Elementwise kernels on their own: one IEEE rounding each, and integers as ONNX wants them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from mixport.validate.interpreter.graph import Array, Node
from mixport.validate.interpreter.kernels_elementwise import (
    CAST_TYPES,
    COMPARISONS,
    ELEMENTWISE,
    SOURCES,
    shape_of,
)

f32 = np.float32


def node(op: str, **attributes: Any) -> Node:
    return Node(index=0, name="n", op=op, inputs=(), outputs=("y",), attributes=attributes)


def run(op: str, *args: Any, **attributes: Any) -> Array:
    (result,) = {**ELEMENTWISE, **SOURCES}[op](node(op, **attributes), args)
    return result


@pytest.mark.parametrize(
    ("op", "expected"),
    [("Add", [1.3, -1.3]), ("Sub", [0.7, -0.7]), ("Mul", [0.3, 0.3]), ("Div", [1 / 0.3, 1 / 0.3])],
)
def test_float_arithmetic_is_one_float32_rounding(op: str, expected: list[float]) -> None:
    a, b = np.asarray([1.0, -1.0], f32), np.asarray([0.3, -0.3], f32)
    got = run(op, a, b)
    exact = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[op]
    assert got.dtype == f32
    np.testing.assert_array_equal(got, exact(a.astype(np.float64), b.astype(np.float64)).astype(f32))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_integer_division_truncates_towards_zero() -> None:
    a, b = np.asarray([7, -7, 7, -7, 6]), np.asarray([2, 2, -2, -2, -3])
    np.testing.assert_array_equal(run("Div", a, b), [3, -3, -3, 3, -2])


def test_division_by_zero_warns_nobody() -> None:
    with np.errstate(all="raise"):
        got = run("Div", np.asarray([1, -1, 0], f32), np.zeros(3, f32))
    np.testing.assert_array_equal(got, np.asarray([np.inf, -np.inf, np.nan], f32))


def test_extremes_take_any_number_of_tensors() -> None:
    args = [np.asarray(values) for values in ([3, 1, 2], [2, 2, 2], [1, 5, 3])]
    np.testing.assert_array_equal(run("Min", *args), [1, 1, 2])
    np.testing.assert_array_equal(run("Max", *args), [3, 5, 3])
    np.testing.assert_array_equal(run("Max", args[0]), [3, 1, 2])


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [((), [-5, 0, 9]), ((-1,), [-1, 0, 9]), ((None, 3), [-5, 0, 3]), ((-1, 3), [-1, 0, 3])],
)
def test_either_bound_of_a_clip_may_be_absent(bounds: tuple[Any, ...], expected: list[int]) -> None:
    args = [None if bound is None else np.int8(bound) for bound in bounds]
    got = run("Clip", np.asarray([-5, 0, 9], np.int8), *args)
    assert got.dtype == np.int8
    np.testing.assert_array_equal(got, expected)


def test_relu_keeps_the_type() -> None:
    got = run("Relu", np.asarray([-3, 4], np.int16))
    assert got.dtype == np.int16 and got.tolist() == [0, 4]


def test_casts_round_half_to_even_and_know_their_types() -> None:
    ties = np.asarray([1 + 2.0**-24, 1 + 3 * 2.0**-24], np.float64)
    np.testing.assert_array_equal(run("Cast", ties, to=TensorProto.FLOAT), np.asarray([1, 1 + 2.0**-22], f32))
    assert run("Cast", np.asarray([-2, 0]), to=TensorProto.BOOL).tolist() == [True, False]
    assert {np.dtype(name).name for name in CAST_TYPES.values()} == {
        *("float32", "float64", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16"),
    }
    assert TensorProto.FLOAT16 not in CAST_TYPES


def test_codes_are_dequantised_along_an_axis() -> None:
    codes = np.asarray([[0, 255], [7, 9]], np.uint8)
    scale, zero = np.asarray([0.5, 0.25], f32), np.asarray([128, 9], np.uint8)
    rows = run("DequantizeLinear", codes, scale, zero, axis=0)
    np.testing.assert_array_equal(rows, np.asarray([[-64, 63.5], [-0.5, 0]], f32))
    columns = run("DequantizeLinear", codes, scale)
    np.testing.assert_array_equal(columns, np.asarray([[0, 63.75], [3.5, 2.25]], f32))
    one = run("DequantizeLinear", codes, scale[0], zero[0])
    np.testing.assert_array_equal(one, np.asarray([[-64, 63.5], [-60.5, -59.5]], f32))


def test_comparisons_give_booleans() -> None:
    a, b = np.asarray([1, 2, 3]), np.asarray([2, 2, 2])
    found = {op: run(op, a, b).tolist() for op in COMPARISONS - {"Not", "And", "Or"}}
    assert found == {
        "Equal": [False, True, False],
        "Greater": [False, False, True],
        "GreaterOrEqual": [False, True, True],
        "Less": [True, False, False],
        "LessOrEqual": [True, True, False],
    }
    x, y = np.asarray([True, False]), np.asarray([True, True])
    assert (run("Not", x).tolist(), run("And", x, y).tolist()) == ([False, True], [True, False])
    assert run("Where", x, np.asarray([5, 5]), np.asarray([7, 7])).tolist() == [5, 7]
    assert ELEMENTWISE.keys() >= COMPARISONS


def test_shapes_and_sources() -> None:
    assert shape_of(node("Shape"), (2, 3, 5)).tolist() == [2, 3, 5]
    assert shape_of(node("Shape", start=-2, end=-1), (2, 3, 5)).tolist() == [3]
    size = shape_of(node("Size"), (2, 3, 5))
    assert size.shape == () and size.dtype == np.int64 and size == 30 and shape_of(node("Size"), ()) == 1
    filled = run("ConstantOfShape", np.asarray([2, 1]), value=np.asarray([8], np.int64))
    assert filled.dtype == np.int64 and filled.tolist() == [[8], [8]]
    assert run("ConstantOfShape", np.asarray([2])).dtype == f32
    steps = run("Range", np.int32(7), np.int32(0), np.int32(-3))
    assert steps.dtype == np.int32 and steps.tolist() == [7, 4, 1]


def test_constants_of_every_spelling() -> None:
    found = [run("Constant", **{key: value}) for key, value in (("value_int", 3), ("value_floats", (1, 2.5)))]
    assert found[0].dtype == np.int64 and found[0] == 3
    assert found[1].dtype == f32 and found[1].tolist() == [1, 2.5]
    with pytest.raises(KeyError, match="n"):
        run("Constant", value_string="x")
