"""Every movement, elementwise and shape operator of the interpreter against the runtime, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from mixport.records.targets import Target
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.run.session import open_session
from tests.unit.validate.qdq_graphs import QdqBuilder

f32 = np.float32
SHAPE = (2, 4, 6, 8)


def check(b: QdqBuilder, output: str, target: Target, *, elem_type: int = TensorProto.FLOAT) -> np.ndarray:
    model = b.build(output, output_type=elem_type)
    x = (np.random.default_rng(4).normal(size=SHAPE) * 3).astype(f32)
    got = open_session(model, policy=target.session).run(None, {"input": x})[0]
    interpreter = Interpreter(model)
    assert interpreter.island_names == ()
    expected = interpreter.run(x).output
    assert expected is not None and expected.dtype == got.dtype
    np.testing.assert_array_equal(expected, got)
    return got


MOVES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "reshape": ("Reshape", (np.array([0, -1, 4]),), {}),
    "reshape, allow zero": ("Reshape", (np.array([2, 24, 8]),), {"allowzero": 1}),
    "transpose": ("Transpose", (), {"perm": [3, 0, 2, 1]}),
    "transpose, reversed": ("Transpose", (), {}),
    "flatten": ("Flatten", (), {"axis": 2}),
    "flatten, negative": ("Flatten", (), {"axis": -1}),
    "unsqueeze": ("Unsqueeze", (np.array([0, 3]),), {}),
    "slice": ("Slice", (np.array([1, -3]), np.array([4, 1000]), np.array([1, 3])), {}),
    "slice, steps": ("Slice", (np.array([0]), np.array([6]), np.array([2]), np.array([2])), {}),
    "slice, backwards": ("Slice", (np.array([-1]), np.array([-1000]), np.array([3]), np.array([-2])), {}),
    "gather": ("Gather", (np.array([3, 0, -1]),), {"axis": 1}),
    "gather, one": ("Gather", (np.array(2),), {"axis": 2}),
    "expand": ("Expand", (np.array([3, 1, 1, 1, 8]),), {}),
    "tile": ("Tile", (np.array([1, 2, 1, 3]),), {}),
    "depth to space": ("DepthToSpace", (), {"blocksize": 2}),
    "depth to space, CRD": ("DepthToSpace", (), {"blocksize": 2, "mode": "CRD"}),
    "space to depth": ("SpaceToDepth", (), {"blocksize": 2}),
    "max pool": ("MaxPool", (), {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    "max pool, ceil": ("MaxPool", (), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "max pool, ceil and pads": (
        "MaxPool",
        (),
        {"kernel_shape": [2, 2], "strides": [2, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    ),
    "max pool, dilations": ("MaxPool", (), {"kernel_shape": [2, 2], "dilations": [2, 3]}),
    "pad, reflect": ("Pad", (np.array([0, 1, 2, 0, 0, 0, 0, 3]),), {"mode": "reflect"}),
    "pad, edge": ("Pad", (np.array([0, 1, 2, 0, 1, 0, 0, 3]),), {"mode": "edge"}),
    "pad, wrap": ("Pad", (np.array([0, 1, 2, 0, 0, 0, 6, 3]),), {"mode": "wrap"}),
    "identity": ("Identity", (), {}),
}


@pytest.mark.parametrize("on_codes", [True, False], ids=["codes", "floats"])
@pytest.mark.parametrize(("op", "constants", "attributes"), MOVES.values(), ids=MOVES.keys())
def test_movement(
    op: str, constants: tuple[Any, ...], attributes: dict[str, Any], on_codes: bool, target: Target
) -> None:
    b = QdqBuilder(shape=SHAPE)
    source = b.quantise("input", "x", 0.05, 100) if on_codes else "input"
    moved = b.node(op, [source, *(b.constant(c) for c in constants)], **attributes)
    check(b, moved, target, elem_type=TensorProto.UINT8 if on_codes else TensorProto.FLOAT)


def test_squeeze_split_concat_pad(target: Target) -> None:
    b = QdqBuilder(shape=SHAPE)
    codes = b.quantise("input", "x", 0.05, 100)
    b.nodes.append(helper.make_node("Split", [codes, b.constant(np.array([1, 3]))], ["s0", "s1"], axis=1))
    b.nodes.append(helper.make_node("Split", ["s1"], ["t0", "t1", "t2"], axis=1, num_outputs=3))
    joined = b.node("Concat", ["t2", "s0", "t0", "t1"], axis=1)
    padded = b.node(
        "Pad", [joined, b.constant(np.array([0, 0, 1, 2, 0, 0, 0, 3])), b.constant(np.uint8(100))]
    )
    one = b.node("Gather", [padded, b.constant(np.array([1]))], axis=1)
    check(b, b.node("Squeeze", [one, b.constant(np.array([1]))]), target, elem_type=TensorProto.UINT8)


def test_pad_and_concat_ranges_are_known() -> None:
    b = QdqBuilder(shape=SHAPE)
    codes = b.quantise("input", "x", 0.05, 100, clip=(90, 110))
    padded = b.node("Pad", [codes, b.constant(np.array([0, 0, 1, 2, 0, 0, 0, 3])), b.constant(np.uint8(200))])
    info = Interpreter(b.build(padded, output_type=TensorProto.UINT8)).plan.tensors[padded]
    assert (info.low, info.high) == (90, 200)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Min", "Max"])
def test_two_operand_arithmetic(op: str, target: Target) -> None:
    b = QdqBuilder(shape=SHAPE)
    stream = b.dequantise(b.quantise("input", "x", 0.001, 3, dtype="int16"))
    other = b.constant((b.rng.normal(size=(4, 1, 8)) * 2).astype(f32))
    check(b, b.node(op, [stream, other]), target)


@pytest.mark.parametrize("op", ["Neg", "Abs", "Relu"])
def test_one_operand_arithmetic(op: str, target: Target) -> None:
    b = QdqBuilder(shape=SHAPE)
    check(b, b.node(op, [b.qdq("input", "x", 0.05, 100)]), target)


def test_square_root_and_clip(target: Target) -> None:
    b = QdqBuilder(shape=SHAPE)
    root = b.node("Sqrt", [b.node("Abs", ["input"])])
    check(b, b.node("Clip", [root, b.constant(f32(0.3)), b.constant(f32(1.7))]), target)


def test_layer_normalisation_from_integer_sums_is_exact(target: Target) -> None:
    """The portable form: D x - sum(x) over sqrt of D sum(x^2) - sum(x)^2, every step IEEE; sums by Add keep
    integers exact.
    """
    b = QdqBuilder(shape=SHAPE)
    codes = b.node("Cast", [b.quantise("input", "x", 0.05, 100)], to=TensorProto.FLOAT)
    doubled = b.node("Mul", [codes, b.constant(f32(8))])
    centred = b.node("Sub", [doubled, b.constant(f32(801))])
    variance = b.node("Add", [b.node("Mul", [centred, centred]), b.constant(f32(1e-3))])
    normed = b.node("Div", [centred, b.node("Sqrt", [variance])])
    b.quantise(normed, "y", 0.01, 128)
    check(b, b.dequantise("y"), target)


SHAPES: dict[str, Callable[[QdqBuilder, str], str]] = {
    "batch size kept": lambda b, s: b.node(
        "Concat", [b.node("Gather", [s, b.constant(np.array([0]))]), b.constant(np.array([-1]))], axis=0
    ),
    "arithmetic": lambda b, s: b.node(
        "Concat",
        [
            b.node(
                "Mul",
                [
                    b.node("Slice", [s, b.constant(np.array([0])), b.constant(np.array([1]))]),
                    b.constant(np.array([2])),
                ],
            ),
            b.node(
                "Div",
                [
                    b.node("Slice", [s, b.constant(np.array([1])), b.constant(np.array([2]))]),
                    b.constant(np.array([2])),
                ],
            ),
            b.constant(np.array([-1])),
        ],
        axis=0,
    ),
    "where equal": lambda b, s: b.node(
        "Where",
        [
            b.node("Equal", [s, b.constant(np.array([2, 4, 6, 9]))]),
            s,
            b.node(
                "ConstantOfShape",
                [b.constant(np.array([4]))],
                value=helper.make_tensor("v", TensorProto.INT64, [1], [8]),
            ),
        ],
    ),
    "range": lambda b, s: b.node(
        "Gather",
        [
            b.node("Cast", [b.node("Cast", [s], to=TensorProto.INT32)], to=TensorProto.INT64),
            b.node("Range", [b.constant(np.int64(0)), b.node("Size", [s]), b.constant(np.int64(1))]),
        ],
    ),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_shape_arithmetic(shape: Callable[[QdqBuilder, str], str], target: Target) -> None:
    b = QdqBuilder(shape=("N", 4, 6, 8))
    codes = b.quantise("input", "x", 0.05, 100)
    check(
        b,
        b.node("Reshape", [codes, shape(b, b.node("Shape", ["input"]))]),
        target,
        elem_type=TensorProto.UINT8,
    )


def test_constants_by_node(target: Target) -> None:
    b = QdqBuilder(shape=SHAPE)
    axes = b.node("Constant", [], value_ints=[0])
    value = b.node("Constant", [], value_float=0.25)
    check(b, b.node("Unsqueeze", [b.node("Mul", ["input", value]), axes]), target)


def test_maximum_of_codes_equals_maximum_of_floats(target: Target) -> None:
    b = QdqBuilder(shape=SHAPE)
    pooled = b.node("MaxPool", [b.qdq("input", "x", 0.05, 100)], kernel_shape=[2, 2], strides=[2, 2])
    check(b, b.dequantise(b.quantise(pooled, "y", 0.05, 100)), target)
