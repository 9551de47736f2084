"""The fusion rules against ONNX Runtime's own optimised graph: every form that the rules judge is put to
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import helper

from mixport.records.targets import Target
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.run.fusion_audit import optimised_nodes
from mixport.validate.run.session import run_codes
from tests.unit.validate.qdq_graphs import QdqBuilder

f32 = np.float32
Build = Callable[[QdqBuilder], str]


def conv(b: QdqBuilder, x: str | None = None) -> str:
    if x is None:
        b.quantise("input", "x", 0.03, 128)
    return b.layer("Conv", "x", (6, 3, 3, 3), name="conv", pads=[1, 1, 1, 1], x=x)


def gemm(b: QdqBuilder, *, zero_point: bool = True, **attributes: Any) -> str:
    flat = b.node("Flatten", [b.quantise("input", "x", 0.03, 128)])
    b.quantisation[flat] = b.quantisation["x"]
    result = b.layer("Gemm", flat, (5, 192), name="gemm", **attributes)
    if not zero_point:
        for node in b.nodes:
            if node.op_type == "DequantizeLinear" and node.input[0] == "gemm.weight":
                del node.input[2]
    return result


def behind(
    b: QdqBuilder, result: str, op: str, *constants: Any, zero_point: int = 120, **attributes: Any
) -> str:
    moved = b.node(op, [result, *(b.constant(c) for c in constants)], **attributes)
    return b.qdq(moved, "y", 0.4, zero_point)


def two(
    b: QdqBuilder,
    op: str,
    *,
    scales: tuple[float, float] = (0.25, 0.25),
    out: float = 0.25,
    dtype: str = "uint8",
) -> str:
    left = b.qdq("input", "x", scales[0], 128)
    right = b.qdq(b.node("Neg", ["input"]), "x2", scales[1], 120)
    return b.qdq(b.node(op, [left, right]), "y", out, 0 if dtype == "int16" else 100, dtype=dtype)


def dq_move(op: str, *constants: Any, **attributes: Any) -> Build:
    def build(b: QdqBuilder) -> str:
        x = b.qdq("input", "x", 0.03, 128)
        moved = b.node(op, [x, *(b.constant(c) for c in constants)], **attributes)
        return b.qdq(b.node("GlobalAveragePool", [moved]), "y", 0.01, 100)

    return build


def mixed_consumers(b: QdqBuilder) -> str:
    result = gemm(b)
    return b.node("Add", [b.qdq(result, "y", 0.4, 120), b.node("Neg", [result])])


def two_quantisers(b: QdqBuilder) -> str:
    result = conv(b)
    return b.node("Add", [b.qdq(result, "y", 0.4, 120), b.qdq(result, "y2", 0.2, 100)])


def constant_operand(b: QdqBuilder) -> str:
    x = b.qdq("input", "x", 0.25, 128)
    codes = b.constant(np.full((1, 3, 1, 1), 9, np.uint8))
    other = b.node("DequantizeLinear", [codes, b.constant(f32(0.5)), b.constant(np.uint8(3))])
    return b.qdq(b.node("Add", [x, other]), "y", 0.25, 100)


FORMS: dict[str, tuple[str | None, Build]] = {
    "conv": ("QLinearConv", lambda b: b.qdq(conv(b), "y", 0.4, 120)),
    "conv, clip on codes": ("QLinearConv", lambda b: b.qdq(conv(b), "y", 0.4, 0, clip=(0, 15))),
    "conv, relu at the minimum": ("QLinearConv", lambda b: behind(b, conv(b), "Relu", zero_point=0)),
    "conv, relu elsewhere": (None, lambda b: behind(b, conv(b), "Relu", zero_point=120)),
    "conv, float clip": (None, lambda b: behind(b, conv(b), "Clip", f32(-1), f32(1))),
    "conv, int16 codes": (None, lambda b: b.qdq(conv(b), "y", 0.01, 0, dtype="int16")),
    "conv, float consumer": (None, lambda b: b.node("Neg", [conv(b)])),
    "conv, two quantisers": (None, two_quantisers),
    "conv, reshape": ("QLinearConv", lambda b: behind(b, conv(b), "Reshape", np.array([0, 6, 64]))),
    "conv, transpose": ("QLinearConv", lambda b: behind(b, conv(b), "Transpose", perm=[0, 2, 3, 1])),
    "conv, unsqueeze": ("QLinearConv", lambda b: behind(b, conv(b), "Unsqueeze", np.array([1]))),
    "conv, slice": (
        "QLinearConv",
        lambda b: behind(b, conv(b), "Slice", np.array([1]), np.array([4]), np.array([1])),
    ),
    "conv, max pool": ("QLinearConv", lambda b: behind(b, conv(b), "MaxPool", kernel_shape=[2, 2])),
    "conv, flatten": (None, lambda b: behind(b, conv(b), "Flatten")),
    "conv, gather": (None, lambda b: behind(b, conv(b), "Gather", np.array([0, 2]), axis=1)),
    "conv, float input": (None, lambda b: b.qdq(conv_of_float(b), "y", 0.4, 120)),
    "gemm": ("QGemm", lambda b: b.qdq(gemm(b), "y", 0.4, 120)),
    "gemm, no bias": ("QGemm", lambda b: b.qdq(gemm(b, bias=False), "y", 0.4, 120)),
    "gemm, no zero point": (None, lambda b: b.qdq(gemm(b, zero_point=False), "y", 0.4, 120)),
    "gemm, floats": ("QGemm", gemm),
    "gemm, float consumers": ("QGemm", lambda b: b.node("Softmax", [gemm(b)])),
    "gemm, quantiser and float": (None, mixed_consumers),
    "gemm, float clip": (None, lambda b: behind(b, gemm(b), "Clip", f32(-1), f32(1))),
    "gemm, reshape": ("QGemm", lambda b: behind(b, gemm(b), "Reshape", np.array([-1, 5, 1]))),
    "gemm, flatten": ("QGemm", lambda b: behind(b, gemm(b), "Flatten")),
    "add": ("QLinearAdd", lambda b: two(b, "Add")),
    "add, ratios": ("QLinearAdd", lambda b: two(b, "Add", scales=(0.75, 0.5))),
    "add, int16 codes": (None, lambda b: two(b, "Add", dtype="int16")),
    "add, constant codes": ("QLinearAdd", constant_operand),
    "multiply": ("QLinearMul", lambda b: two(b, "Mul")),
    "pool": ("QLinearGlobalAveragePool", dq_move("Identity")),
    "pool, transposed codes": ("QLinearGlobalAveragePool", dq_move("Transpose", perm=[0, 1, 3, 2])),
    "pool, max pool before": ("QLinearGlobalAveragePool", dq_move("MaxPool", kernel_shape=[2, 2])),
    "pool, slice before": (
        "QLinearGlobalAveragePool",
        dq_move("Slice", np.array([1]), np.array([3]), np.array([2])),
    ),
    "pool, squeeze before": ("QLinearGlobalAveragePool", lambda b: squeeze_pool(b)),
    "pool, gather before": (None, dq_move("Gather", np.array([0, 1]), axis=2)),
    "pool, pad before": (None, dq_move("Pad", np.array([0, 0, 1, 1, 0, 0, 1, 1]))),
}


def conv_of_float(b: QdqBuilder) -> str:
    b.quantisation["x"] = (f32(0.03), 128, "uint8")
    return conv(b, x="input")


def squeeze_pool(b: QdqBuilder) -> str:
    x = b.dequantise(b.quantise(b.node("Unsqueeze", ["input", b.constant(np.array([1]))]), "x", 0.03, 128))
    return b.qdq(
        b.node("GlobalAveragePool", [b.node("Squeeze", [x, b.constant(np.array([1]))])]), "y", 0.01, 100
    )


@pytest.mark.parametrize(("operator", "build"), FORMS.values(), ids=FORMS.keys())
def test_rules_agree_with_the_optimiser(operator: str | None, build: Build, target: Target) -> None:
    b = QdqBuilder()
    model = b.build(build(b))
    operators = [node.op for node in optimised_nodes(model, policy=target.session)]
    fused = [op for op in operators if op.startswith("QLinear") or op == "QGemm"]
    assert fused == ([operator] if operator else [])
    interpreter = Interpreter(model)
    units = [unit for unit in interpreter.units if unit.kind not in ("requantise", "table")]
    assert len(units) == len(fused)


@pytest.mark.parametrize(("operator", "build"), FORMS.values(), ids=FORMS.keys())
def test_codes_agree_with_the_runtime(operator: str | None, build: Build, target: Target) -> None:
    b = QdqBuilder()
    model = b.build(build(b))
    images = np.random.default_rng(2).normal(size=(8, 3, 8, 8)).astype(f32) * 3
    interpreter = Interpreter(model)
    got = run_codes(model, images, interpreter.sites, target.session)
    given = {name: got[name] for name in interpreter.entry_sites}
    execution = interpreter.run(images, overrides=given)
    for name in interpreter.sites:
        np.testing.assert_array_equal(execution.codes[name], got[name], err_msg=name)
    if execution.output is not None:
        np.testing.assert_array_equal(execution.output, got["output"])


def test_an_add_with_other_scales_is_an_island_with_the_reason() -> None:
    b = QdqBuilder()
    interpreter = Interpreter(b.build(two(b, "Add", scales=(0.3, 0.25))))
    assert interpreter.entry_sites == ("y",)
    (reason,) = interpreter.island_reasons.values()
    assert "not an integer multiple of the output scale" in reason


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("conv, relu elsewhere", "zero point 120 is not 0"),
        ("conv, float clip", "Clip .* stands where a QuantizeLinear should follow"),
        ("conv, int16 codes", "output codes are int16"),
        ("conv, two quantisers", "2 consumers"),
        ("conv, float input", "input input is not dequantised codes"),
        ("gemm, no zero point", "no explicit zero point"),
    ],
)
def test_reasons_name_the_condition(form: str, reason: str) -> None:
    b = QdqBuilder()
    interpreter = Interpreter(b.build(FORMS[form][1](b)))
    assert len(interpreter.island_names) == 1
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(next(iter(interpreter.island_reasons.values())))


def test_custom_operators_are_islands() -> None:
    b = QdqBuilder()
    b.nodes.append(helper.make_node("Thing", ["input"], ["t"], domain="elsewhere", name="thing"))
    interpreter = Interpreter(b.build(b.qdq("t", "y", 0.1, 0)))
    assert interpreter.island_names == ("thing (elsewhere::Thing)",)
    assert interpreter.entry_sites == ("y",)
