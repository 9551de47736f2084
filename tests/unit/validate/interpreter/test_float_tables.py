"""Float functions behind codes: proved ones give codes, all others stay islands, each with its reason."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from mixport.validate.interpreter.interpreter import Interpreter
from tests.unit.validate.qdq_graphs import QdqBuilder


def run(model: onnx.ModelProto, name: str, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run([name], {"input": x})[0]


X = np.random.default_rng(0).normal(0, 2, (2, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [(op, {}) for op in ("Sigmoid", "Tanh", "Erf", "Gelu", "HardSwish")]
    + [("Gelu", {"approximate": kind}) for kind in ("tanh", "none")],
)
def test_a_proved_function_gives_the_runtime_s_codes(op: str, attributes: dict[str, str]) -> None:
    b = QdqBuilder()
    y = b.quantise(b.node(op, [b.qdq("input", "x", 0.0371, 117)], **attributes), "y", 0.02113, 41)
    model = b.build(b.dequantise(y))
    interpreter = Interpreter(model)
    assert interpreter.island_names == ()
    assert [unit.kind for unit in interpreter.units] == ["function"]
    codes = interpreter.run(X).codes["y"]
    model.graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, None))
    np.testing.assert_array_equal(codes, run(model, "y", X))


@pytest.mark.parametrize(
    ("scale", "zero_point", "expected"),
    [(1.0, 100, (0, 255)), (0.01, 128, (56, 198)), (1.0, 0, (127, 255)), (1.0, 255, (0, 128))],
)
def test_codes_behind_a_function_have_its_range(
    scale: float, zero_point: int, expected: tuple[int, int]
) -> None:
    """Products of them are proved, and tried, for what can occur alone."""
    b = QdqBuilder()
    y = b.quantise(b.node("Sigmoid", [b.qdq("input", "x", scale, zero_point)]), "y", 1 / 255.3, 0)
    (unit,) = Interpreter(b.build(b.dequantise(y))).units
    codes = np.arange(256) - zero_point
    reached = np.clip(np.rint(255.3 / (1 + np.exp(-codes * scale))), 0, 255)
    assert (unit.low, unit.high) == (reached.min(), reached.max())
    assert abs(unit.low - expected[0]) <= 2 and abs(unit.high - expected[1]) <= 2


@pytest.mark.parametrize(("zero_point", "expected"), [(0, (254, 255)), (255, (0, 1))])
def test_a_function_of_one_code_has_a_range_of_two(zero_point: int, expected: tuple[int, int]) -> None:
    b = QdqBuilder()
    x = b.qdq("input", "x", 40.0, zero_point)
    y = b.quantise(
        b.node(
            "HardSigmoid",
            [b.node("Add", [x, b.constant(np.float32(9 if zero_point == 0 else -9))])],
            alpha=1 / 6,
        ),
        "y",
        0.0039,
        0,
    )
    (unit,) = [one for one in Interpreter(b.build(b.dequantise(y))).units if one.kind == "function"]
    assert (unit.low, unit.high) == expected


def test_a_product_with_its_own_gate_is_followed() -> None:
    """SiLU in float: two readers of the codes, an error carried through a multiplication."""
    b = QdqBuilder()
    x = b.qdq("input", "x", 0.0371, 117)
    y = b.quantise(b.node("Mul", [x, b.node("Sigmoid", [x])]), "y", 0.0213, 14)
    interpreter = Interpreter(b.build(b.dequantise(y)))
    assert interpreter.island_names == ()
    codes = interpreter.run(X).codes
    real = (codes["x"].astype(np.float64) - 117) * np.float32(0.0371)
    expected = np.clip(np.rint(real / (1 + np.exp(-real)) / np.float32(0.0213)) + 14, 0, 255)
    np.testing.assert_array_equal(codes["y"], expected)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("tie", "boundary of two codes"),
        ("float output", "read as it is"),
        ("summed", "read by ReduceSum"),
        ("two tensors", "two code tensors"),
        ("nested", "result of another function"),
        ("floats", "its input is no codes"),
        ("wide", "not quantised to 8 bits"),
    ],
)
def test_what_is_not_proved_is_an_island(case: str, reason: str) -> None:
    b = QdqBuilder()
    x = b.qdq("input", "x", 0.0371, 117) if case != "floats" else "input"
    value = b.node("Sigmoid", [x])
    if case == "summed":
        value = b.node("ReduceSum", [value])
    if case == "two tensors":
        value = b.node("Mul", [value, b.qdq(b.node("Neg", [x]), "z", 0.0113, 90)])
    if case == "nested":
        value = b.node("Tanh", [value])
    if case == "float output":
        model = b.build(value)
    else:
        scale = 1 / 255 if case == "tie" else 0.00397
        options = {"dtype": "int16"} if case == "wide" else {}
        model = b.build(b.qdq(value, "y", scale, 3 if case not in ("tie", "wide") else 0, **options))
    interpreter = Interpreter(model)
    assert [name for name in interpreter.island_names if "Sigmoid" in name]
    assert any(reason in why for why in interpreter.island_reasons.values()), interpreter.island_reasons


def test_an_operator_with_other_attributes_is_another_function() -> None:
    b = QdqBuilder()
    y = b.qdq(b.node("HardSigmoid", [b.qdq("input", "x", 0.0371, 117)], alpha=0.2), "y", 1 / 256)
    assert Interpreter(b.build(y)).island_names


def test_every_code_of_a_function_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cut unit is asked for all 256 codes."""
    from mixport.validate.crafted.check_units import prepare_units

    b = QdqBuilder()
    y = b.qdq(b.node("Sigmoid", [b.qdq("input", "x", 0.0371, 117)]), "y", 1 / 256)
    checks, skipped = prepare_units(b.build(y), input_shape=(1, 3, 8, 8))
    assert not skipped
    assert [case.kind for case in checks[0].cases] == ["all-codes"]
    assert checks[0].expected[0].size == 256
