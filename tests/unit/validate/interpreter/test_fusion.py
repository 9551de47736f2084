"""The fusion rules by themselves: the quantiser that a node ends in, what is absorbed, and each refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mixport.validate.interpreter.execution_plan import build_plan
from mixport.validate.interpreter.fusion import (
    FUSED_OPERATORS,
    Fused,
    NotFused,
    Surroundings,
    code_range,
    fuse,
    saturation_of,
)
from mixport.validate.interpreter.graph import read_graph
from mixport.validate.interpreter.values import Saturation
from tests.unit.validate.qdq_graphs import QdqBuilder

f32 = np.float32
Build = Callable[[QdqBuilder], str]


def fused(build: Build, op: str = "") -> Fused | NotFused:
    """The rules' word on the only node of FUSED_OPERATORS, or on the one of this operator."""
    b = QdqBuilder()
    graph = read_graph(b.build(build(b)))
    plan = build_plan(graph)
    (node,) = (node for node in graph.nodes if node.op == op or (not op and node.op in FUSED_OPERATORS))
    return fuse(node, Surroundings(graph=graph, tensors=plan.tensors, constants=plan.constants))


def conv(b: QdqBuilder, **attributes: Any) -> str:
    b.quantise("input", "x", 0.03, 128)
    return b.layer("Conv", "x", (6, 3, 3, 3), name="conv", **attributes)


def pair(b: QdqBuilder, op: str, *, scales: tuple[float, float] = (0.5, 0.25), right: str = "uint8") -> str:
    a = b.qdq("input", "a", scales[0], 3)
    other = b.qdq(b.node("Neg", ["input"]), "b", scales[1], 5, dtype=right)
    return b.qdq(b.node(op, [a, other]), "y", 0.25, 7)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_code_ranges_are_those_of_the_type(dtype: str) -> None:
    info = np.iinfo(dtype)
    assert code_range(np.dtype(dtype)) == (info.min, info.max)


def test_a_quantiser_gives_scale_zero_point_and_range() -> None:
    found = fused(lambda b: b.qdq(conv(b), "y", 0.4, 120))
    assert isinstance(found, Fused) and [node.op for node in found.absorbed] == ["QuantizeLinear"]
    expected = Saturation(scale=f32(0.4), zero_point=120, low=0, high=255, dtype=np.dtype(np.uint8))
    assert found.saturation == expected and found.warning == ""


def test_movement_and_a_relu_at_the_minimum_are_absorbed() -> None:
    def moved(b: QdqBuilder) -> str:
        turned = b.node("Transpose", [conv(b)], perm=[0, 2, 3, 1])
        return b.qdq(b.node("Reshape", [turned, b.constant(np.array([0, -1]))]), "y", 0.4, 120)

    found = fused(moved)
    assert isinstance(found, Fused)
    assert [node.op for node in found.absorbed] == ["Transpose", "Reshape", "QuantizeLinear"]
    found = fused(lambda b: b.qdq(b.node("Relu", [conv(b)]), "y", 0.4, 0))
    assert isinstance(found, Fused) and [node.op for node in found.absorbed] == ["Relu", "QuantizeLinear"]


def test_a_product_alone_may_give_floats() -> None:
    def gemm(b: QdqBuilder) -> str:
        flat = b.node("Flatten", [b.quantise("input", "x", 0.03, 128)])
        b.quantisation[flat] = b.quantisation["x"]
        return b.layer("Gemm", flat, (5, 192), name="gemm")

    assert fused(gemm) == Fused(saturation=None)
    found = fused(lambda b: b.node("Neg", [conv(b)]))
    assert isinstance(found, NotFused) and "Neg" in found.reason


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda b: b.qdq(conv(b, auto_pad="SAME_UPPER"), "y", 0.4, 120), "auto_pad is SAME_UPPER"),
        (lambda b: conv(b), "its result output is a graph output, not quantised"),
        (lambda b: b.qdq(b.node("Relu", [conv(b)]), "y", 0.4, 1), "zero point 1 is not 0$"),
        (lambda b: b.qdq(conv(b), "y", 0.4, 0, dtype="int8"), "input codes are uint8, output codes are int8"),
        (lambda b: pair(b, "Mul", right="int8"), "different code types, uint8 and int8"),
        (lambda b: pair(b, "Mul", right="int16"), "has int16 codes, allowed 8 bits"),
        (lambda b: pair(b, "Add", scales=(0.3, 0.25)), "scale 0.3 of .* is not an integer multiple"),
        # A half of the output scale, and one that is a multiple only nearly.
        (lambda b: pair(b, "Add", scales=(0.125, 0.25)), "scale 0.125 of .* is not an integer multiple"),
        (lambda b: pair(b, "Add", scales=(0.50000006, 0.25)), "is not an integer multiple"),
    ],
)
def test_each_refusal_names_its_condition(build: Build, reason: str) -> None:
    found = fused(build)
    assert isinstance(found, NotFused)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found.reason)


def test_a_bias_in_another_scale_is_a_warning() -> None:
    def off(b: QdqBuilder) -> str:
        result = conv(b)
        name = next(node.input[1] for node in b.nodes if node.input[0] == "conv.bias")
        place = [one.name for one in b.initializers].index(name)
        del b.initializers[place]
        b.constant(np.full(6, 0.25, f32), name)
        return b.qdq(result, "y", 0.4, 120)

    found = fused(off)
    assert isinstance(found, Fused) and found.warning.endswith("so runtimes may add another bias")


@pytest.mark.parametrize(
    ("scale", "zero", "reason"),
    [
        (np.asarray([0.5, 0.25], f32), np.asarray([0, 0], np.uint8), "its scale is not one constant float32"),
        (f32(0.5), np.int32(0), "its zero point is not one constant code of 8 or 16 bits"),
    ],
)
def test_a_quantiser_of_another_form_is_refused(scale: Any, zero: Any, reason: str) -> None:
    b = QdqBuilder()
    b.node("QuantizeLinear", ["input", b.constant(scale), b.constant(zero)], output="y", axis=1)
    graph = read_graph(b.build("y"))
    around = Surroundings(graph=graph, tensors={}, constants=graph.constants)
    assert saturation_of(graph.producer["y"], around) == NotFused(reason=reason)


def test_without_a_zero_point_codes_are_uint8() -> None:
    b = QdqBuilder()
    b.node("QuantizeLinear", ["input", b.constant(f32(0.5))], output="y")
    graph = read_graph(b.build("y"))
    around = Surroundings(graph=graph, tensors={}, constants=graph.constants)
    assert saturation_of(graph.producer["y"], around) == Saturation(
        scale=f32(0.5), zero_point=0, low=0, high=255, dtype=np.dtype(np.uint8)
    )
