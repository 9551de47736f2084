"""Movement by hand: where each value goes, for codes and floats alike, and the forms that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from mixport.records.errors import UnsupportedModelError
from mixport.validate.interpreter.graph import Array, Node
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.interpreter.kernels_movement import JOINS, MOVES

X = np.arange(6, dtype=np.uint8).reshape(2, 3)
SQUARE = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)


def run(op: str, *args: Any, outputs: int = 1, **attributes: Any) -> tuple[Array, ...]:
    names = tuple(f"y{i}" for i in range(outputs))
    node = Node(index=0, name="n", op=op, inputs=(), outputs=names, attributes=attributes)
    given = [None if arg is None else np.asarray(arg) for arg in args]
    return {**MOVES, **JOINS}[op](node, given)


@pytest.mark.parametrize(
    ("op", "args", "attributes", "expected"),
    [
        ("Reshape", ([0, -1],), {}, X),
        ("Reshape", ([3, 2],), {}, [[0, 1], [2, 3], [4, 5]]),
        ("Transpose", (), {}, [[0, 3], [1, 4], [2, 5]]),
        ("Flatten", (), {"axis": 0}, [[0, 1, 2, 3, 4, 5]]),
        ("Flatten", (), {"axis": -1}, X),
        ("Unsqueeze", ([0],), {}, [[[0, 1, 2], [3, 4, 5]]]),
        ("Slice", ([1], [1000], [1]), {}, [[1, 2], [4, 5]]),
        ("Slice", ([-1], [-1000], [1], [-2]), {}, [[2, 0], [5, 3]]),
        ("Slice", ([0, 1], [1, 2]), {}, [[1]]),
        ("Slice", ([2], [0], [1], [-1]), {}, [[2, 1], [5, 4]]),
        ("Gather", ([-1, 0],), {}, [[3, 4, 5], [0, 1, 2]]),
        ("Gather", (1,), {"axis": 1}, [1, 4]),
        ("GatherElements", ([[0, -1], [2, 1]],), {"axis": 1}, [[0, 2], [5, 4]]),
        ("Expand", ([2, 1, 1],), {}, [X, X]),
        ("Tile", ([1, 2],), {}, [[0, 1, 2, 0, 1, 2], [3, 4, 5, 3, 4, 5]]),
        ("Identity", (), {}, X),
        ("Pad", ([0, 1, 1, 0], 9), {}, [[9, 0, 1, 2], [9, 3, 4, 5], [9, 9, 9, 9]]),
        ("Pad", ([1, 1], None, [1]), {}, [[0, 0, 1, 2, 0], [0, 3, 4, 5, 0]]),
        ("Pad", ([0, 2, 0, 0],), {"mode": "reflect"}, [[2, 1, 0, 1, 2], [5, 4, 3, 4, 5]]),
        ("Concat", ([[7], [8]],), {"axis": 1}, [[0, 1, 2, 7], [3, 4, 5, 8]]),
    ],
)
def test_values_go_where_onnx_puts_them(
    op: str, args: tuple[Any, ...], attributes: dict[str, Any], expected: Any
) -> None:
    for dtype in (np.uint8, np.float32):
        typed = [np.asarray(arg, dtype) for arg in args] if op == "Concat" else args
        (got,) = run(op, X.astype(dtype), *typed, **attributes)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, np.asarray(expected, dtype))


def test_a_zero_copies_a_size_unless_zero_is_allowed() -> None:
    empty = np.zeros((0, 3), np.uint8)
    assert run("Reshape", empty, [0, 3])[0].shape == (0, 3)
    assert run("Reshape", empty, [3, 0], allowzero=1)[0].shape == (3, 0)
    with pytest.raises(ValueError, match="reshape"):
        run("Reshape", X, [3, 0], allowzero=1)


def test_squeeze_takes_named_axes_or_every_axis_of_one() -> None:
    x = X.reshape(1, 2, 1, 3)
    assert run("Squeeze", x)[0].shape == (2, 3)
    assert run("Squeeze", x, [-2])[0].shape == (1, 2, 3)
    with pytest.raises(ValueError, match="axis"):
        run("Squeeze", x, [1])


def test_a_split_is_by_sizes_or_even_with_a_short_end() -> None:
    row = np.arange(7)
    assert [part.tolist() for part in run("Split", row, [1, 6], outputs=2)] == [[0], [1, 2, 3, 4, 5, 6]]
    parts = run("Split", row, outputs=3, axis=0)
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6]]


def test_depth_and_space_are_inverse_and_the_modes_differ() -> None:
    depth = np.arange(8, dtype=np.uint8).reshape(1, 8, 1, 1)
    (dcr,) = run("DepthToSpace", depth, blocksize=2)
    (crd,) = run("DepthToSpace", depth, blocksize=2, mode="CRD")
    assert dcr.tolist() == [[[[0, 2], [4, 6]], [[1, 3], [5, 7]]]]
    assert crd.tolist() == [[[[0, 1], [2, 3]], [[4, 5], [6, 7]]]]
    np.testing.assert_array_equal(run("SpaceToDepth", dcr, blocksize=2)[0], depth)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, [[5, 6, 7], [9, 10, 11], [13, 14, 15]]),
        ({"strides": (2, 2)}, [[5, 7], [13, 15]]),
        ({"dilations": (2, 2)}, [[10, 11], [14, 15]]),
        ({"strides": (3, 3)}, [[5]]),
        ({"strides": (3, 3), "ceil_mode": 1}, [[5, 7], [13, 15]]),
        # A third window would start in the trailing padding, so it is left out.
        ({"strides": (2, 2), "pads": (0, 0, 1, 1), "ceil_mode": 1}, [[5, 7], [13, 15]]),
        ({"strides": (2, 2), "pads": (1, 1, 1, 1)}, [[0, 2, 3], [8, 10, 11], [12, 14, 15]]),
    ],
    ids=str,
)
def test_windows_of_a_pool(attributes: dict[str, Any], expected: list[list[int]]) -> None:
    (got,) = run("MaxPool", SQUARE, kernel_shape=(2, 2), **attributes)
    assert got.dtype == np.uint8 and got[0, 0].tolist() == expected


def test_padding_of_a_pool_is_below_every_value() -> None:
    for x in (np.full((1, 1, 1, 1), -7.5, np.float32), np.full((1, 1, 1, 1), -128, np.int8)):
        (got,) = run("MaxPool", x, kernel_shape=(2, 2), pads=(1, 1, 0, 0))
        assert got.dtype == x.dtype and got.reshape(-1).tolist() == [x.item()]


def test_what_is_not_interpreted_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"n \(Pad\): a negative pad") as caught:
        run("Pad", X, [0, -1, 0, 0])
    assert caught.value.hint == "write it as a Slice"
    with pytest.raises(UnsupportedModelError, match=r"n \(MaxPool\): only explicit pads"):
        run("MaxPool", SQUARE, kernel_shape=(2, 2), auto_pad="SAME_UPPER")


def test_an_empty_batch_is_flattened() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (uint8[n,2,2] x) => (uint8[n,m] y) { y = Flatten(x) }'
    )
    got = Interpreter(model).run_feeds({"x": np.zeros((0, 2, 2), np.uint8)}).outputs["y"]
    assert got is not None and got.shape == (0, 4)
